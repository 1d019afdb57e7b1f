"""Pretraining as a LightningModule: the network's loss on a batch, its optimiser and its schedule."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from src.config.settings import OptimizerConfig
from src.models.mae import MAEOutput, MaskedAutoencoder
from src.training.optimizer import make_optimizer, scaled_learning_rate, schedule


class Pretraining(L.LightningModule):
    """
    Args:
        model: what is trained. clips_per_step: effective batch of all processes. steps: optimiser steps.
        shard: gives each process its piece of a model that is on the meta device; None leaves the model whole.
    """

    def __init__(
        self, model: MaskedAutoencoder, optimizer: OptimizerConfig, clips_per_step: float, steps: int,
        shard: Callable[[MaskedAutoencoder, Any], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self._shard = shard
        self.optimizer_config, self.steps = optimizer, steps
        self.learning_rate = scaled_learning_rate(optimizer.learning_rate, clips_per_step)
        self.validation_loss = MeanMetric()

    def configure_model(self) -> None:
        """Once: Lightning calls it for each stage."""
        if self._shard is not None:
            assert self.device_mesh is not None
            self._shard(self.model, self.device_mesh["data_parallel"])
            self._shard = None

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        output = self._forward(batch)
        loss, loss_everywhere = self._mean_over_processes(output)
        self.log("train/loss", loss_everywhere)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        output = self._forward(batch)
        self.validation_loss.update(output.loss, weight=output.mask.sum())

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.validation_loss.compute(), prog_bar=True)
        self.validation_loss.reset()

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        self.log("test/loss", self.validation_loss.compute())
        self.validation_loss.reset()

    def predict_step(self, batch: dict[str, Any], batch_index: int) -> tuple[list[str], Tensor]:
        """Keys of the clips and their embeddings (B, D)."""
        return batch["key"], self.model.encoder.embed(batch["waveform"], batch["length"])

    def _forward(self, batch: dict[str, Any]) -> MAEOutput:
        return self.model(batch["waveform"], batch["length"], batch["seed"])

    def _mean_over_processes(self, output: MAEOutput) -> tuple[Tensor, Tensor]:
        """A loss whose gradients, averaged over processes, are those of the mean over all masked tokens; and that mean.

        Clips differ in length, so processes differ in tokens.
        """
        count = output.mask.sum().to(output.loss.dtype)
        total = self.trainer.strategy.reduce(torch.stack([output.loss.detach() * count, count]), reduce_op="sum")
        return output.loss * count * self.trainer.world_size / total[1].clamp(min=1), total[0] / total[1].clamp(min=1)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By the norm over all pieces. Lightning's own refuses a fused optimiser in bf16 (because of fp16's scaler)."""
        if gradient_clip_val is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> Any:
        config = self.optimizer_config
        first, second = config.betas
        optimizer = make_optimizer(self.model, self.learning_rate, config.weight_decay, (first, second))
        share = partial(schedule, warmup_steps=config.warmup_steps, steps=self.steps, final_share=config.final_share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, share), "interval": "step"},
        }
