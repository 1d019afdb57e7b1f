"""The folder of a run: one that is claimed, or the one to resume; and what its checkpoints say about the run."""

import re
from pathlib import Path
from typing import Any

from src.encoders.lightning import read_about
from src.errors import UserError


def claim_folder(runs_folder: str, name: str) -> Path:
    """Make `runs_folder/name`, or `name-2`, `name-3`, ... if that exists: a run is never overwritten.

    Two processes that ask at the same moment get two folders.

    Raises:
        UserError: no permission, or no room.
    """
    number, folder = 1, Path(runs_folder, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1
                folder = Path(runs_folder, f"{name}-{number}")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; set runs_folder to a folder you may write"
        ) from error


def later_starts(runs_folder: str, name: str) -> list[Path]:
    """`name-2`, `name-3`, ...: the folders of later starts under the same name, in their order."""
    folder = Path(runs_folder, name)
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
    pattern = re.compile(re.escape(folder.name) + r"-([1-9]\d*)")
    numbered = [(int(match[1]), path) for path in siblings if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(numbered) if _name_at_start(path) in (None, name)]


def _name_at_start(folder: Path) -> str | None:
    """The name in the settings that a run was started with; None where its checkpoints don't say."""
    for checkpoint in whole_checkpoints(folder):
        try:
            return read_about(checkpoint)["run"].get("name")
        except Exception:  # whatever a damaged archive raises: it is refused when it is opened to be used
            continue
    return None


def whole_checkpoints(folder: Path) -> list[Path]:
    """Of a run and its folds, the newest first."""
    # last.ckpt.old: a folder whose successor was about to take its name (`distributed/checkpoint.py`)
    patterns = ("checkpoints/*.ckpt", "checkpoints/*.ckpt.old", "fold-*/checkpoints/*.ckpt")
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    whole = [path for path in found if path.is_file() or (path / "meta.pt").exists()]  # what is written last
    return sorted(whole, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), reverse=True)


def checkpoint_to_resume(runs_folder: str, name: str, resume: str) -> Path | None:
    """The checkpoint that `--resume` means.

    Args:
        resume: a checkpoint's path; or "auto" for the newest whole checkpoint of the run `name`, its later starts
            included, None if there is none yet.

    Raises:
        UserError: a path that does not exist.
    """
    if resume != "auto":
        if not Path(resume).exists():
            raise UserError(f"there is no checkpoint {resume} in {Path.cwd()}; auto takes the newest of the run")
        return Path(resume)
    starts = [Path(runs_folder, name), *later_starts(runs_folder, name)]
    checkpoints = [path for start in starts for path in whole_checkpoints(start)]
    return max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), default=None)


def checkpoint_of(runs_folder: str, name: str, wanted: str | None) -> Path:
    """The checkpoint that `--checkpoint` of validate, test and predict means: of the run `name`, and of no other.

    Args:
        wanted: "best" (where the run keeps one, the default) or "last"; a checkpoint's path; a run's folder.

    Raises:
        UserError: there is none.
    """
    folder = Path(runs_folder, name)
    if wanted not in (None, "best", "last", "auto"):
        path = Path(str(wanted))
        if not path.exists():
            raise UserError(f"there is no checkpoint {wanted} (looked in {Path.cwd()}); best and last are of the run")
        if path.is_file() or not (path / "checkpoints").is_dir():
            return path
        folder, wanted = path, None
    names = ("last.ckpt",) if wanted == "last" else ("best.ckpt",) if wanted == "best" else ("best.ckpt", "last.ckpt")
    for each in names:
        if (folder / "checkpoints" / each).exists():
            return folder / "checkpoints" / each
    raise UserError(f"{folder / 'checkpoints'} has no {' or '.join(names)}; give a checkpoint with --checkpoint PATH")


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to, without its fold; a foreign checkpoint's own folder."""
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return folder.parent if re.fullmatch(r"fold-.+", folder.name) else folder


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What `Checkpoints` put under "run", and the optimizer step as "step".

    Raises:
        UserError: the file is not a checkpoint of ours, or is damaged.
    """
    try:
        content = read_about(checkpoint)
        return {**content["run"], "step": content["global_step"]}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{checkpoint} is not a whole checkpoint of this project ({reason})") from error
