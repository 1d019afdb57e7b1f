"""A callback that acts now and then: every so many optimiser steps, and once more when the run has reached its end."""

import time
from typing import Any

import lightning.pytorch as L


class Periodic(L.Callback):
    """Subclasses say what to do in `act`. `seconds` is what it cost during the run, the last time not counted."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.seconds = 0.0

    def act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise NotImplementedError

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and trainer.global_step % self.every_steps == 0 and trainer.global_step < trainer.max_steps:
            start = time.perf_counter()
            self.act(trainer, pl_module)
            self.seconds += time.perf_counter() - start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step >= trainer.max_steps:
            self.act(trainer, pl_module)
