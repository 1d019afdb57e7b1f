"""How fast: clips a second, audio-hours seen, share of time spent waiting for data, gradient norm, time to go."""

import time
from typing import Any

import lightning.pytorch as L
import torch

from src.pretraining.module import Pretraining


class Throughput(L.Callback):
    """Logs with the training loss; goes last among the callbacks, so that their time does not count as waiting.

    Args:
        every_steps: optimiser steps between two rows of metrics; the gradient norm is worked out for those only.

    Attributes:
        hours: audio seen by all processes, also before a resume (crops as they are, without padding).
        seconds: of training, also before a resume; checks and saves included, the first batch's start-up not.
    """

    def __init__(self, every_steps: int) -> None:
        self.every_steps = every_steps
        self.hours = self.seconds = self.clips_per_second = self.wait_share = 0.0
        self._gradient_norm = 0.0
        self._samples: int | torch.Tensor = 0  # of all processes; on the device until it is read

    def state_dict(self) -> dict[str, float]:
        return {"samples": int(self._samples), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._samples, self.seconds = int(state_dict["samples"]), state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = self._step_end = time.perf_counter()
        self._clips = 0
        self._waited = self._paused = 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter() - self._validation_start

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._samples = self._samples + batch["length"].sum() * trainer.world_size  # here, for a save ends a step
        now = time.perf_counter()
        self._waited += now - self._step_end - self._paused
        self._paused = 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every_steps == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            self._gradient_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        now = time.perf_counter()
        assert isinstance(pl_module, Pretraining)
        if trainer.global_step % self.every_steps == 0 or trainer.global_step == trainer.max_steps:
            self.hours = int(self._samples) / pl_module.model.encoder.sample_rate / 3600
        self._clips += len(batch["length"]) * trainer.world_size
        elapsed = now - self._begin
        self.seconds += now - self._step_end
        self._step_end = now
        self.clips_per_second = self._clips / elapsed
        self.wait_share = self._waited / elapsed
        values = {
            "clips_per_second": self.clips_per_second,
            "audio_hours": self.hours,
            "data_wait_share": self.wait_share,
            "gradient_norm": self._gradient_norm,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "hours_to_go": self.seconds_to_go(trainer) / 3600,
        }
        pl_module.log_dict({f"train/{name}": value for name, value in values.items()})

    def seconds_to_go(self, trainer: L.Trainer) -> float:
        """At the mean speed of the whole run so far."""
        return self.seconds / max(1, trainer.global_step) * (trainer.max_steps - trainer.global_step)
