"""The folder of a run: a name that is free, or the one to go on in; what its newest checkpoint says of itself."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config.files import to_yaml
from src.config.settings import Config
from src.errors import UserError


def free_folder(runs_folder: str, name: str) -> Path:
    """`runs_folder/name`, or `name-2`, `name-3` ... if that is taken: a run is never overwritten."""
    number, folder = 1, Path(runs_folder, name)
    while folder.exists():
        number += 1
        folder = Path(runs_folder, f"{name}-{number}")
    return folder


def checkpoint_to_resume(runs_folder: str, name: str, resume: str) -> Path | None:
    """The checkpoint that `--resume` means.

    Args:
        resume: "auto" for the newest checkpoint of the run `name` (or its later starts `name-2`, ...), None if there
            is none yet; or a checkpoint's path.

    Raises:
        UserError: a path that is not there.
    """
    if resume != "auto":
        if not Path(resume).exists():
            raise UserError(f"there is no checkpoint {resume} in {Path.cwd()}; auto takes the newest of the run")
        return Path(resume)
    starts = [Path(runs_folder, name), *Path(runs_folder).glob(f"{name}-[0-9]*")]
    # last.ckpt.old: a folder whose successor was about to take its name (`sharded_files.py`)
    patterns = ("**/checkpoints/*.ckpt", "**/checkpoints/*.ckpt.old")
    found = [path for start in starts for pattern in patterns for path in start.glob(pattern)]
    checkpoints = [path for path in found if path.is_file() or (path / "meta.pt").exists()]  # what is written last
    return max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name == "last.ckpt"), default=None)


def read_run(checkpoint: Path) -> dict[str, Any]:
    """What `Checkpoints` put under "run", and the optimiser step as "step".

    Raises:
        UserError: the file is not a checkpoint of ours, or is damaged.
    """
    from src.encoders.lightning import read_about

    try:
        content = read_about(checkpoint)
        return {**content["run"], "step": content["global_step"]}
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{checkpoint} is not a whole checkpoint of this project ({reason})") from error


def compare(config: Config, about: dict[str, Any], checkpoint: Path) -> list[str]:
    """Settings that differ from the checkpoint's, a line each.

    Raises:
        UserError: another model.size.
    """
    before, now = _flat(about["config"]), _flat(OmegaConf.to_container(OmegaConf.structured(config)))
    if before["model.size"] != now["model.size"]:
        raise UserError(
            f"{checkpoint} holds a model of size {before['model.size']}, the settings say "
            f"model.size={now['model.size']}; set model.size={before['model.size']} or start a new run"
        )
    ignored = {"name", "runs_folder"}
    keys = [key for key in {**before, **now} if key not in ignored and before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} in the checkpoint, now {now.get(key)}" for key in keys]


def start_folder(folder: Path, config: Config) -> None:
    """Make the folder and write the resolved settings.

    Raises:
        UserError: no permission, or no room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; set runs_folder to a folder you may write"
        ) from error


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: json.dumps(tree) if isinstance(tree, list | dict) else str(tree)}
    parts = (_flat(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}
