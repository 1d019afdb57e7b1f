"""Saving: the last checkpoint at intervals and at the end, and copies of the best, each whole or not there at all."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from src.encoders.lightning import is_sharded, read_training
from src.training.distributed.checkpoint import (
    SAVE_ERRORS,
    begin_save,
    copy,
    discard,
    finish_save,
    is_written,
    put_in_place,
    save_error,
)
from src.training.distributed.parallel import Sharded, names

_ASK_EVERY = 10  # batches between two times that the processes compare notes on a save


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files of unsharded training: written beside the target, flushed, then renamed, so that what bears a checkpoint's
    name is whole. It also reads the folders of a sharded run."""

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        if is_sharded(Path(path)):
            return read_training(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, target)
        except SAVE_ERRORS as error:
            partial.unlink(missing_ok=True)
            raise save_error(target, error) from error


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
        if isinstance(trainer.strategy, Sharded):  # shards hold its tensors by name; the rest goes here
            order = iter(names(pl_module, trainer.optimizers[0]))
            checkpoint["optimizer_groups"] = [
                {**group, "params": None, "names": [next(order) for _ in group["params"]]}
                for group in trainer.optimizers[0].param_groups
            ]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % _ASK_EVERY == 0 and is_written(trainer):
            self.finish(trainer)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.global_step % self.every_steps == 0 or trainer.global_step == trainer.max_steps
        if stepped and (due or trainer.should_stop):
            self.save_last(trainer)
            if trainer.should_stop:
                self.finish(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.finish(trainer)

    def finish(self, trainer: L.Trainer) -> None:
        """Wait for a save that goes on beside the training."""
        if isinstance(trainer.strategy, Sharded):
            finish_save(trainer, self.last)

    def save_last(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_at:
            if isinstance(trainer.strategy, Sharded):
                finish_save(trainer, self.last)
                begin_save(trainer, self.last)
            else:
                trainer.save_checkpoint(self.last, weights_only=False)  # the whole state
            self._saved_at = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or self.keep_best == 0:
            return
        self.save_last(trainer)
        self.finish(trainer)
        if trainer.is_global_zero:
            loss = float(trainer.callback_metrics["val/loss"])
            copy(self.last, self.folder / f"step={trainer.global_step}-val_loss={loss:.4f}.ckpt")
            for dropped in self.best()[self.keep_best :]:
                discard(dropped)
