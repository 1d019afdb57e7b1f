"""Skip optimizer steps whose loss or gradient norm is not finite, or whose loss jumps up."""

import csv
import logging
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor

from src.errors import UserError
from src.training.callbacks.steps import log_is_due
from src.training.distributed.parallel import reduce
from src.training.module import TrainingModule
from src.training.tracking import alert

log = logging.getLogger("src")


class Step(NamedTuple):
    """A step not yet looked at. values: (5,) verdict, loss, gradient norm, mean loss before, bad steps in a row."""

    number: int
    values: Tensor
    names: list[str]


class SkipBadSteps(L.Callback):
    """A skipped step leaves weights, moments and batch-norm statistics unchanged, but counts as a step.

    All processes skip the same steps. Steps are judged on the device, without waiting for it; the host looks at the
    verdicts, lists bad steps and stops the run when metrics are logged. Must precede callbacks that read gradients.

    Args:
        file: CSV of step, reason and clip name.
        max_in_a_row: more consecutive skipped steps than this stop the run.
    """

    deviations = 8.0  # a loss this many standard deviations above its running mean is a jump
    memory = 0.98  # decay of the running mean and variance: about 50 steps
    min_steps = 100  # steps before jumps are detected
    state_names = ("num_skipped", "in_a_row", "seen_steps", "mean", "variance")

    def __init__(self, file: Path, max_in_a_row: int) -> None:
        self.file, self.max_in_a_row = file, max_in_a_row
        self._state = torch.zeros(len(self.state_names), dtype=torch.float64)  # moves to the device, if it has float64
        self._names: list[str] = []  # of this step's clips
        self._statistics: list[tuple[Tensor, Tensor]] = []  # batch-norm buffers and their values before the step
        self._unread: list[Step] = []

    @property
    def num_skipped(self) -> int:
        """Skipped steps, including those before a resume."""
        return int(self._state[0])

    def state_dict(self) -> dict[str, Any]:
        return dict(zip(self.state_names, self._state.tolist(), strict=True))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = torch.tensor([state_dict[name] for name in self.state_names], dtype=torch.float64)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.file = trainer.strategy.broadcast(self.file)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
        self._state = self._state.to(pl_module.device, dtype)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if not self._names:  # the first batch of a step
            self._statistics = [
                (buffer, buffer.clone())
                for module in pl_module.modules()
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
                for buffer in module.buffers(recurse=False)
            ]
        self._names += batch["key"]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, TrainingModule)
        loss, norm = trainer.callback_metrics["train/loss"].detach(), pl_module.gradient_norm()
        mean = self._state[3].clone()
        verdict = reduce(self.judge(loss, norm), "max")
        self.remember(loss, verdict)
        self._skip(pl_module, optimizer, verdict > 0)
        values = torch.stack([each.to(self._state.dtype) for each in (verdict, loss, norm, mean, self._state[1])])
        self._unread.append(Step(trainer.global_step + 1, values, self._names))
        self._names, self._statistics = [], []
        pl_module.log("train/skipped_steps", self._state[0].float())
        if log_is_due(trainer, trainer.global_step + 1):
            self._look(trainer)

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Scalar: 0 for a good step, 1 if the loss jumps up, 2 if the norm is not finite, 3 if the loss is not."""
        _, _, seen_steps, mean, variance = self._state
        jump = (seen_steps >= self.min_steps) & (loss > mean + self.deviations * variance.sqrt())
        return torch.stack([jump * 1.0, ~gradient_norm.isfinite() * 2.0, ~loss.isfinite() * 3.0]).amax()

    def remember(self, loss: Tensor, verdict: Tensor) -> None:
        """Update counts, running mean and variance; over the first steps all losses have equal weight."""
        skipped, in_a_row, seen_steps, mean, variance = self._state
        share = (1 / (seen_steps + 1)).clamp(min=1 - self.memory)
        distance = loss - mean
        new_variance = (1 - share) * (variance + share * distance**2)
        good = torch.stack([skipped, torch.zeros_like(skipped), seen_steps + 1, mean + share * distance, new_variance])
        bad = torch.stack([skipped + 1, in_a_row + 1, seen_steps, mean, variance])
        self._state = torch.where(verdict > 0, bad, good)

    def _skip(self, pl_module: L.LightningModule, optimizer: Any, bad: Tensor) -> None:
        """Where `bad`, restore the statistics and have the optimizer do nothing."""
        for buffer, before in self._statistics:
            buffer.copy_(torch.where(bad, before, buffer))
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.float()  # as torch.amp.GradScaler sets it: no update of moments, no weight decay
        elif bad:  # with a GradScaler, which waits for the device in each step itself
            for parameter in pl_module.parameters():
                parameter.grad = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: L.Trainer) -> None:
        """Read the verdicts since the last look, list bad steps, and stop the run if there are too many in a row."""
        steps, self._unread = self._unread, []
        if not steps:
            return
        for step, values in zip(steps, torch.stack([step.values for step in steps]).tolist(), strict=True):
            verdict, in_a_row = values[0], values[4]
            if not verdict:
                continue
            reason = self.reason(*values[:4])
            names = _gather(trainer, step.names)
            if trainer.is_global_zero:
                self._write(step.number, reason, names)
                examples = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                log.warning("step %d is skipped: %s (%s)", step.number, reason, examples)
                alert(trainer.loggers, "bad step", f"step {step.number} is skipped: {reason} ({examples})")
            if in_a_row > self.max_in_a_row:
                sentence = (
                    f"{in_a_row:.0f} steps in a row were bad, more than trainer.skip_bad_steps={self.max_in_a_row} "
                    f"(last: {reason}); their clips are listed in {self.file}; lower optimizer.lr, set "
                    "trainer.gradient_clip_val or resume from an earlier checkpoint"
                )
                alert(trainer.loggers, "too many bad steps", sentence)
                raise UserError(sentence)

    def reason(self, verdict: float, loss: float, gradient_norm: float, mean: float) -> str:
        """Why a step is bad; `verdict` is that of `judge`."""
        if verdict == 3:
            return f"the loss is {loss}"
        if verdict == 2:
            return f"the gradient norm is {gradient_norm}"
        return f"the loss {loss:.4g} is more than {self.deviations:g} deviations above its mean {mean:.4g}"

    def _write(self, step: int, reason: str, names: list[str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = not self.file.exists()
        with open(self.file, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([("step", "reason", "name")] * new)
            writer.writerows((step, reason, name) for name in names)


def _gather(trainer: L.Trainer, names: list[str]) -> list[str]:
    """Names of a step's clips on all processes: the bad one may be any of them."""
    if trainer.world_size == 1:
        return names
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, names)
    return [name for each in gathered for name in each]
