"""Run folders: create one, find the checkpoint to resume or evaluate, read what a checkpoint records about its run."""

import re
from pathlib import Path
from typing import Any

from src.encoders.lightning import read_about
from src.encoders.load import check_content
from src.errors import UserError


def claim_folder(runs_folder: str, name: str) -> Path:
    """Create `runs_folder/name`, or `name-2`, `name-3`, ... if it exists: a run is never overwritten.

    Concurrent calls get different folders.

    Raises:
        UserError: the folder cannot be created.
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
        raise UserError(f"cannot write to {folder}: {error.strerror}; set runs_folder to a writable folder") from error


def later_starts(runs_folder: str, name: str) -> list[Path]:
    """Folders `name-2`, `name-3`, ... of later runs started under the same name, in order."""
    folder = Path(runs_folder, name)
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
    pattern = re.compile(re.escape(folder.name) + r"-([1-9]\d*)")
    numbered = [(int(match[1]), path) for path in siblings if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(numbered) if _name_at_start(path) in (None, name)]


def _name_at_start(folder: Path) -> str | None:
    """The name a run was started with; None if no checkpoint records it."""
    for checkpoint in complete_checkpoints(folder):
        try:
            return read_about(checkpoint)["run"].get("name")
        except Exception:  # a damaged archive may raise anything; it is reported when it is loaded
            continue
    return None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run and its folds that were written to the end, newest first."""
    # last.ckpt.old: a sharded checkpoint whose replacement was interrupted (`distributed/checkpoint.py`)
    patterns = ("checkpoints/*.ckpt", "checkpoints/*.ckpt.old", "fold-*/checkpoints/*.ckpt")
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    complete = [path for path in paths if path.is_file() or (path / "meta.pt").exists()]  # meta.pt is written last
    return sorted(complete, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), reverse=True)


def checkpoint_to_resume(runs_folder: str, name: str, resume: str) -> Path | None:
    """The checkpoint that `--resume` refers to.

    Args:
        resume: a checkpoint path, or "auto": the newest complete checkpoint of run `name` and its later starts, None
            if there is none.

    Raises:
        UserError: the path does not exist.
    """
    if resume != "auto":
        if not Path(resume).exists():
            raise UserError(
                f"there is no checkpoint {resume} (looked in {Path.cwd()}); --resume auto takes the run's newest"
            )
        return Path(resume)
    starts = [Path(runs_folder, name), *later_starts(runs_folder, name)]
    checkpoints = [path for start in starts for path in complete_checkpoints(start)]
    return max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), default=None)


def checkpoint_of(runs_folder: str, name: str, checkpoint: str | None) -> Path:
    """The checkpoint that `--checkpoint` of validate, test and predict refers to; later starts are not searched.

    Args:
        checkpoint: "best" or "last" of run `name`; a checkpoint path; a run folder; None for best, else last.

    Raises:
        UserError: it does not exist.
    """
    folder = Path(runs_folder, name)
    if checkpoint not in (None, "best", "last", "auto"):
        path = Path(str(checkpoint))
        if not path.exists():
            raise UserError(
                f"there is no checkpoint {checkpoint} (looked in {Path.cwd()}); give a path, or best or last of the run"
            )
        if path.is_file() or not (path / "checkpoints").is_dir():
            return path
        folder, checkpoint = path, None
    names = (
        ("last.ckpt",)
        if checkpoint == "last"
        else ("best.ckpt",)
        if checkpoint == "best"
        else ("best.ckpt", "last.ckpt")
    )
    for each in names:
        if (folder / "checkpoints" / each).exists():
            return folder / "checkpoints" / each
    raise UserError(f"{folder / 'checkpoints'} has no {' or '.join(names)}; give a checkpoint with --checkpoint PATH")


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint belongs to (of the whole run for a fold); else the file's own folder."""
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return folder.parent if re.fullmatch(r"fold-.+", folder.name) else folder


def results_folder(checkpoint: Path) -> Path:
    """Where `predict` writes: the run folder of the checkpoint; the current folder if it belongs to no run."""
    return run_of(checkpoint) if checkpoint.parent.name == "checkpoints" else Path()


def read_run(checkpoint: Path) -> dict[str, Any]:
    """The record that `Checkpoints` saves as "run", and the optimizer step as "step".

    Raises:
        UserError: the file is not a checkpoint of this project, or it is damaged.
    """
    if checkpoint.is_file():
        check_content(checkpoint)
    try:
        content = read_about(checkpoint)
        return {**content["run"], "step": content["global_step"]}
    except UserError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{checkpoint} is not a complete checkpoint of this project ({reason})") from error
