"""Save the last checkpoint at intervals and at the end, and keep copies of the best; all writes are atomic."""

import math
import os
import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from src.config.settings import CheckpointConfig
from src.encoders.lightning import is_sharded, read_training
from src.errors import UserError
from src.training.callbacks.steps import parse_time, stepped
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

_ASK_EVERY = 10  # batches between checks whether all processes have finished a save


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file next to the target, flushes it and renames it, so that a file with a checkpoint's name is complete.

    Also loads the checkpoint folders of a sharded run.
    """

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
    """Keeps `last.ckpt` and the `save_top_k` best checkpoints, named `step=STEP-METRIC=VALUE.ckpt`.

    Args:
        folder: of the checkpoints.
        settings: when to save, and which checkpoints are best.
        about: saved in each checkpoint as "run" (resolved settings, versions, W&B id).
        mark_best: also keep the best one as `best.ckpt`, the default checkpoint of the run folder.
    """

    def __init__(self, folder: Path, settings: CheckpointConfig, about: dict[str, Any], mark_best: bool) -> None:
        self.folder, self.settings, self.about, self.mark_best = folder, settings, about, mark_best
        self._interval = parse_time(settings.train_time_interval).total_seconds() if settings.train_time_interval else 0
        self._saved_at, self._saved_time = -1, time.monotonic()
        self._metric = settings.monitor.replace("/", "_")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def best(self) -> list[Path]:
        """The `save_top_k` checkpoints, best first."""
        sign = 1 if self.settings.mode == "min" else -1
        pattern = re.compile(rf"step=\d+-{re.escape(self._metric)}=(.+)\.ckpt")
        files = self.folder.iterdir() if self.folder.is_dir() else iter(())
        ranked = [(sign * float(match[1]), path) for path in files if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(ranked)]

    def to_report(self) -> Path:
        """The checkpoint to test and report: the best one, or the last if there is no best."""
        best = self.best()
        return best[0] if best else self.last

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.about
        if isinstance(trainer.strategy, Sharded):  # the shards hold its tensors by name; this is the rest
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
        if not stepped(trainer, batch_idx):
            return
        if trainer.should_stop or (self.settings.save_last and self._due(trainer)):
            self.save_last(trainer)
            if trainer.should_stop:
                self.finish(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        if step % self.settings.every_n_train_steps == 0 or step == trainer.max_steps:
            return True
        late = bool(self._interval) and time.monotonic() - self._saved_time > self._interval
        return bool(self._interval) and trainer.strategy.broadcast(late)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save_last(trainer)  # unless this step is already saved
        self.finish(trainer)
        if not self.settings.save_last and trainer.is_global_zero and not trainer.should_stop and self.best():
            discard(self.last)  # written only as the source of copies

    def finish(self, trainer: L.Trainer) -> None:
        """Wait for an asynchronous save in progress."""
        if isinstance(trainer.strategy, Sharded):
            finish_save(trainer, self.last)

    def save_last(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_at:
            if isinstance(trainer.strategy, Sharded):
                finish_save(trainer, self.last)
                begin_save(trainer, self.last)
            else:
                trainer.save_checkpoint(self.last, weights_only=False)  # with optimizer and callbacks
            self._saved_at, self._saved_time = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        value = self._monitored(trainer)
        if self.settings.save_top_k == 0 or not math.isfinite(value):
            if self.settings.save_last:
                self.save_last(trainer)
            return
        self.save_last(trainer)
        self.finish(trainer)
        if trainer.is_global_zero:
            copy(self.last, self.folder / f"step={trainer.global_step}-{self._metric}={value:.4f}.ckpt")
            best = self.best()
            for surplus in best[self.settings.save_top_k :] if self.settings.save_top_k > 0 else []:
                discard(surplus)
            if self.mark_best:
                copy(best[0], self.folder / "best.ckpt")

    def _monitored(self, trainer: L.Trainer) -> float:
        """The monitored value; a checkpoint with NaN is never best.

        Raises:
            UserError: no metric of that name is logged.
        """
        if self.settings.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise UserError(f"checkpoint.monitor={self.settings.monitor} is not logged; logged metrics are: {logged}")
        return float(trainer.callback_metrics[self.settings.monitor])
