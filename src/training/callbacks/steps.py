"""End of an optimizer step, callbacks that act every N batches, and Lightning's time format."""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as L


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this batch, the last one accumulated, completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def log_is_due(trainer: L.Trainer, step: int) -> bool:
    """Whether metrics are logged after optimizer step `step` (1 is the first); the host waits for the device then."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return step % every == 0 or step == trainer.max_steps


class Periodic(L.Callback):
    """Calls `act`, defined by subclasses, every `every_n_batches` and when training is complete.

    Args:
        every_n_batches: as Lightning's val_check_interval; None acts at the end only.

    Attributes:
        seconds: time spent in `act` during training, without the call at the end.
    """

    def __init__(self, every_n_batches: int | None) -> None:
        self.every_n_batches = every_n_batches
        self.seconds = 0.0
        self._acted_at = -1

    def act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = trainer.fit_loop.total_batch_idx + 1
        if self.every_n_batches is None or batches % self.every_n_batches or trainer.should_stop:
            return
        if not stepped(trainer, batch_idx) or trainer.global_step == trainer.max_steps:
            return
        start = time.perf_counter()
        self.act(trainer, pl_module)
        self._acted_at = trainer.global_step
        self.seconds += time.perf_counter() - start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            self.act(trainer, pl_module)


def parse_time(text: str) -> timedelta:
    """Parse DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
