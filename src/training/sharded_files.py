"""Checkpoints under their names: a file or a folder of shards is there whole or not at all.

A folder cannot replace another in one step. The new one is written as `NAME.partial`; then the old one becomes
`NAME.old`, the new one `NAME`, and the old one goes. `NAME.old` is whole whenever it is there.
"""

import os
import shutil
from pathlib import Path

import lightning.pytorch as L
import torch

from src.errors import UserError

SAVE_ERRORS = (OSError, RuntimeError)  # torch's zip writer reports a full disk as a RuntimeError


def save_shards(trainer: L.Trainer, target: Path) -> None:
    """All processes write their shards; the name comes when all have.

    Raises:
        UserError: the file system refuses; the checkpoint of before is whole.
    """
    partial = target.with_name(target.name + ".partial")
    if trainer.is_global_zero:
        discard(partial)  # of a save that was cut off
    trainer.strategy.barrier("old shards are gone")
    try:
        trainer.save_checkpoint(partial, weights_only=False)  # ends with a barrier
        if trainer.is_global_zero:
            with open(partial / "meta.pt", "rb") as file:  # the shards are flushed by who writes them
                os.fsync(file.fileno())
            put_in_place(partial, target)
    except (*SAVE_ERRORS, torch.distributed.checkpoint.CheckpointException) as error:
        raise save_error(target, error) from error
    trainer.strategy.barrier("the checkpoint has its name")


def put_in_place(partial: Path, target: Path) -> None:
    """Give what is whole its name, over a file or folder that has it."""
    if not partial.is_dir() and not target.is_dir():
        os.replace(partial, target)
        return
    old = target.with_name(target.name + ".old")
    if target.exists():
        discard(old)
        os.replace(target, old)
    os.replace(partial, target)
    discard(old)


def copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has that, else a copy; whole or not there."""
    partial = target.with_name(target.name + ".partial")
    discard(partial)
    if source.is_dir():
        shutil.copytree(source, partial, copy_function=_link)
    else:
        _link(source, partial)
    put_in_place(partial, target)


def discard(path: Path) -> None:
    """Remove a file or folder, if there; a removal that is cut off leaves nothing that looks whole."""
    if path.is_dir():
        gone = path if path.suffix == ".partial" else path.with_name(path.name + ".partial")
        if gone != path:
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def save_error(target: Path, error: BaseException) -> UserError:
    """What to say when a save failed."""
    reason = "the disk is full or not writable"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    kept = f"; {target.name} of before is whole" if target.exists() else ""
    return UserError(f"could not save {target}: {reason}{kept}")


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
