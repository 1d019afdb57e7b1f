"""Atomic checkpoints: a file or a sharded folder with its final name is always complete.

A folder cannot replace another atomically. The new one is written as `NAME.partial`; then the old one is renamed to
`NAME.old`, the new one to `NAME`, and the old one is removed. An existing `NAME.old` is always complete.
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
    """Start writing the shards of all processes next to `target`; training continues meanwhile.

    Raises:
        UserError: the file system fails; the previous checkpoint stays complete.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        if trainer.is_global_zero:
            discard(partial)  # left by an interrupted save
            partial.mkdir(parents=True)
        trainer.strategy.barrier("old shards are removed")
        trainer.save_checkpoint(partial, weights_only=False)
    except WRITE_ERRORS as error:
        raise save_error(target, error) from error


def is_written(trainer: L.Trainer) -> bool:
    """Whether all processes have finished writing a save in progress. Collective: call it on all processes."""
    if not isinstance(trainer.strategy, Sharded) or trainer.strategy.writing is None:
        return False
    return trainer.strategy.reduce_boolean_decision(trainer.strategy.writing[0].done(), all=True)


def finish_save(trainer: L.Trainer, target: Path) -> None:
    """Wait for the shards of all processes and rename the checkpoint; does nothing if no save is in progress.

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
            with open(partial / "meta.pt", "wb") as file:  # last: it makes the folder complete
                file.write(rest)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, target)
    except WRITE_ERRORS as error:
        raise save_error(target, error) from error
    trainer.strategy.barrier("the checkpoint is renamed")


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a complete file or folder to `target`, replacing what is there."""
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
    """Hard-link a file or folder, or copy it where links are not supported; atomic."""
    partial = target.with_name(target.name + ".partial")
    discard(partial)
    if source.is_dir():
        shutil.copytree(source, partial, copy_function=_link)
    else:
        _link(source, partial)
    put_in_place(partial, target)


def discard(path: Path) -> None:
    """Remove a file or folder if it exists; an interrupted removal leaves nothing that looks complete."""
    if path.is_dir():
        partial = path if path.suffix == ".partial" else path.with_name(path.name + ".partial")
        if partial != path:
            shutil.rmtree(partial, ignore_errors=True)
            os.replace(path, partial)
        shutil.rmtree(partial)
    else:
        path.unlink(missing_ok=True)


def save_error(target: Path, error: BaseException) -> UserError:
    """The error of a failed save."""
    reason = "the disk is full or not writable"
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    kept = f"; the previous {target.name} is intact" if target.exists() else ""
    return UserError(f"could not save {target}: {reason}{kept}")


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
