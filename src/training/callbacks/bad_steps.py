"""Skip optimizer steps whose loss or gradient norm is not finite, or whose loss jumps up."""

import csv
import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from src.errors import UserError
from src.training.module import TrainingModule

log = logging.getLogger("src")


class SkipBadSteps(L.Callback):
    """A skipped step leaves weights, moments and batch-norm statistics unchanged, but counts as a step.

    All processes skip the same steps. Must precede callbacks that read gradients.

    Args:
        file: CSV of step, reason and clip name.
        max_in_a_row: more consecutive skipped steps than this stop the run.

    Attributes:
        num_skipped: skipped steps, including those before a resume.
    """

    deviations = 8.0  # a loss this many standard deviations above its running mean is a jump
    memory = 0.98  # decay of the running mean and variance: about 50 steps
    min_steps = 100  # steps before jumps are detected

    def __init__(self, file: Path, max_in_a_row: int) -> None:
        self.file, self.max_in_a_row = file, max_in_a_row
        self.num_skipped = self._in_a_row = self._seen_steps = 0
        self._mean = self._variance = 0.0
        self._losses: list[torch.Tensor] = []  # of this step's batches, each averaged over processes
        self._names: list[str] = []
        self._statistics: list[
            tuple[torch.Tensor, torch.Tensor]
        ] = []  # batch-norm buffers and their values before the step

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_skipped": self.num_skipped, "in_a_row": self._in_a_row, "seen_steps": self._seen_steps,
            "mean": self._mean, "variance": self._variance,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_skipped, self._in_a_row = state_dict["num_skipped"], state_dict["in_a_row"]
        self._seen_steps = state_dict["seen_steps"]
        self._mean, self._variance = state_dict["mean"], state_dict["variance"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.file = trainer.strategy.broadcast(self.file)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if not self._losses:  # the first batch of a step
            self._statistics = [
                (buffer, buffer.clone())
                for module in pl_module.modules()
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
                for buffer in module.buffers(recurse=False)
            ]
        self._names += batch["key"]

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._losses.append(trainer.callback_metrics["train/loss"].detach())

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        loss = float(torch.stack(self._losses).mean())
        assert isinstance(pl_module, TrainingModule)
        reason = self._judge(loss, float(pl_module.gradient_norm()))
        if trainer.strategy.reduce_boolean_decision(bool(reason), all=False):
            self._skip(trainer, pl_module, reason or "skipped by another process")
        else:
            self._in_a_row = 0
            self._remember(loss)
        self._losses, self._names, self._statistics = [], [], []
        pl_module.log("train/skipped_steps", float(self.num_skipped))

    def _judge(self, loss: float, gradient_norm: float) -> str:
        """Why the step is bad; "" if it is not."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        deviation = math.sqrt(self._variance)
        if self._seen_steps >= self.min_steps and loss > self._mean + self.deviations * deviation:
            return f"the loss {loss:.4g} is more than {self.deviations:g} deviations above its mean {self._mean:.4g}"
        return ""

    def _remember(self, loss: float) -> None:
        """Update the running mean and variance; over the first steps all losses have equal weight."""
        self._seen_steps += 1
        share = max(1 - self.memory, 1 / self._seen_steps)
        distance = loss - self._mean
        self._mean += share * distance
        self._variance = (1 - share) * (self._variance + share * distance**2)

    def _skip(self, trainer: L.Trainer, pl_module: L.LightningModule, reason: str) -> None:
        for parameter in pl_module.parameters():
            parameter.grad = None  # AdamW skips it: no update of moments, no weight decay
        for buffer, before in self._statistics:
            buffer.copy_(before)
        self.num_skipped += 1
        self._in_a_row += 1
        step = trainer.global_step + 1
        names = self._all_names(trainer)
        if trainer.is_global_zero:
            self._write(step, reason, names)
            examples = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            log.warning("step %d is skipped: %s (%s)", step, reason, examples)
        if self._in_a_row > self.max_in_a_row:
            raise UserError(
                f"{self._in_a_row} steps in a row were bad, more than trainer.skip_bad_steps={self.max_in_a_row} "
                f"(last: {reason}); their clips are listed in {self.file}; lower optimizer.lr, set "
                "trainer.gradient_clip_val or resume from an earlier checkpoint"
            )

    def _all_names(self, trainer: L.Trainer) -> list[str]:
        """Names of this step's clips on all processes: the bad one may be any of them."""
        if trainer.world_size == 1:
            return self._names
        gathered: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, self._names)
        return [name for names in gathered for name in names]

    def _write(self, step: int, reason: str, names: list[str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = not self.file.exists()
        with open(self.file, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([("step", "reason", "name")] * new)
            writer.writerows((step, reason, name) for name in names)
