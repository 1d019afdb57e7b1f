"""Base class of the LightningModules: optimizer, schedule, gradient norm and clipping."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from src.config.settings import OptimizerConfig
from src.training.callbacks.steps import stepped
from src.training.optimizer import apply_settings, make_optimizer, make_schedule, scaled_learning_rate


class TrainingModule(L.LightningModule):
    """Subclasses define `parameter_groups`. The trainer sets the number of steps.

    Args:
        model: the network.
        optimizer: settings of AdamW and the schedule. The learning rate is for an effective batch of 256 clips; it is
            scaled if the data module has `clips_per_batch`, and used as given otherwise.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.model, self.optimizer_config = model, optimizer
        self._gradient_norm: Tensor | None = None
        self.steps_now = True  # whether the optimizer steps after this batch, the last of those accumulated

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups of AdamW, each with "lr" (the peak) and "weight_decay"."""
        raise NotImplementedError

    @property
    def clips_per_step(self) -> float:
        """Effective batch over all processes; 256 if the data module has no `clips_per_batch`."""
        clips = getattr(getattr(self.trainer, "datamodule", None), "clips_per_batch", None)
        return 256.0 if clips is None else clips * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        groups = self._groups()
        optimizer = make_optimizer(groups, self.optimizer_config, fused=self.trainer.precision != "16-mixed")
        schedule = make_schedule(optimizer, self.optimizer_config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        return self.parameter_groups(scaled_learning_rate(self.optimizer_config.lr, self.clips_per_step))

    def on_train_start(self) -> None:
        """Replace the optimizer settings of a resumed checkpoint with the current ones."""
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        apply_settings(optimizer, scheduler, self._groups(), self.optimizer_config)  # type: ignore[arg-type]

    def gradient_norm(self) -> Tensor:
        """Norm over all shards for the coming optimizer step, before clipping; computed once per step."""
        if self._gradient_norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained_parameters() if p.grad is not None])
            self._gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return self._gradient_norm

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm over all shards. Lightning's version refuses fused optimizers, even without a scaler."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained_parameters(), gradient_clip_val, self.gradient_norm())

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.trainer.optimizers[0].param_groups for parameter in group["params"]]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._gradient_norm = None
        self.steps_now = stepped(self.trainer, batch_idx)
