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
from src.training.distributed.parallel import Sharded

SAVE_ERRORS = (OSError, RuntimeError)  # torch's zip writer reports a full disk as a RuntimeError
WRITE_ERRORS = (*SAVE_ERRORS, torch.distributed.checkpoint.CheckpointException)


def begin_save(trainer: L.Trainer, target: Path) -> None:
    """All processes begin to write their shards beside `target`; training can go on.

    Raises:
        UserError: the file system refuses; the checkpoint of before is whole.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        if trainer.is_global_zero:
            discard(partial)  # of a save that was cut off
            partial.mkdir(parents=True)
        trainer.strategy.barrier("old shards are gone")
        trainer.save_checkpoint(partial, weights_only=False)
    except WRITE_ERRORS as error:
        raise save_error(target, error) from error


def is_written(trainer: L.Trainer) -> bool:
    """Whether a save is under way that all processes have written; they all have to ask."""
    if not isinstance(trainer.strategy, Sharded) or trainer.strategy.writing is None:
        return False
    return trainer.strategy.reduce_boolean_decision(trainer.strategy.writing[0].done(), all=True)


def finish_save(trainer: L.Trainer, target: Path) -> None:
    """Wait for the shards of all processes, then give the checkpoint its name; nothing where no save is under way.

    Raises:
        UserError: as `begin_save`.
    """
    assert isinstance(trainer.strategy, Sharded)
    if trainer.strategy.writing is None:
        return
    (written, rest), trainer.strategy.writing = trainer.strategy.writing, None
    partial = target.with_name(target.name + ".partial")
    try:
        written.result()
        trainer.strategy.barrier("all shards are written")
        if trainer.is_global_zero:
            with open(partial / "meta.pt", "wb") as file:  # last: with it the folder is whole
                file.write(rest)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, target)
    except WRITE_ERRORS as error:
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
