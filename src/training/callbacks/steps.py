"""When an optimizer step was made, callbacks that act every so many batches, and times as Lightning writes them."""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as L


def stepped(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the batch that ends now ended an optimizer step, too: the last of those that are accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


class Periodic(L.Callback):
    """Acts every so many batches, and once more when the run has reached its end. Subclasses say what to do in `act`.

    Args:
        every_n_batches: as Lightning's val_check_interval; None acts at the end only.

    Attributes:
        seconds: what it cost during the run, the last time not counted.
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
    """DD:HH:MM:SS."""
    days, hours, minutes, seconds = map(int, text.split(":"))
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
