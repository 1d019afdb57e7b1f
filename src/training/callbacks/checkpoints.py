"""Saving: the last checkpoint at intervals and at the end, and copies of the best, each whole or not there at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from src.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a cut-off save never bears a checkpoint's name."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            kept = f"; {target.name} of before is whole" if target.exists() else ""
            raise UserError(f"could not save {target}: {_reason(error)}{kept}") from error


class Checkpoints(L.Callback):
    """Keeps `last.ckpt`, and the `keep_best` checkpoints of lowest validation loss.

    Args:
        folder: where they go. every_steps: optimiser steps between two saves of the last. about: put into each
            checkpoint under "run" (resolved settings, W&B id, versions).
    """

    def __init__(self, folder: Path, every_steps: int, keep_best: int, about: dict[str, Any]) -> None:
        self.folder, self.every_steps, self.keep_best, self.about = folder, every_steps, keep_best, about
        self._saved_at = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def best(self) -> list[Path]:
        """The best checkpoints, lowest validation loss first; their names say it."""
        return sorted(self.folder.glob("step=*-val_loss=*.ckpt"), key=lambda path: float(path.stem.rpartition("=")[2]))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.about

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.global_step % self.every_steps == 0 or trainer.global_step == trainer.max_steps
        if stepped and (due or trainer.should_stop):
            self.save_last(trainer)

    def save_last(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_at:
            trainer.save_checkpoint(self.last, weights_only=False)  # the whole state
            self._saved_at = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.keep_best == 0:
            return
        self.save_last(trainer)
        if trainer.is_global_zero:
            loss = float(trainer.callback_metrics["val/loss"])
            _copy(self.last, self.folder / f"step={trainer.global_step}-val_loss={loss:.4f}.ckpt")
            for dropped in self.best()[self.keep_best :]:
                dropped.unlink()


def _copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the file system has that, else a copy; whole or not there."""
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, target)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the disk is full or not writable"
