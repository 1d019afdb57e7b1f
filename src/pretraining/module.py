"""Pretraining as a LightningModule.

module = MAEPretraining(create_mae("tiny"), OptimizerConfig(lr=3e-4))
L.Trainer(max_steps=1000, use_distributed_sampler=False).fit(module, datamodule=PretrainDataModule(...))
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MeanMetric

from src.config.settings import OptimizerConfig
from src.data.pretraining.datamodule import PretrainDataModule
from src.models.mae import MAEOutput, MaskedAutoencoder
from src.models.sizes import build_mae
from src.training.distributed.parallel import reduce
from src.training.module import TrainingModule
from src.training.optimizer import parameter_groups


class MAEPretraining(TrainingModule):
    """
    Args:
        model: the network, or its `MaskedAutoencoder.architecture`.
        optimizer: settings of AdamW and the schedule.
        seed: seeds drop-path of each step together with the position in the data, so that no random state is saved.
        shard: shards a model on the meta device over the processes; None does not shard.
        reduce_once: with shards, reduce the gradients of accumulated batches once, which keeps whole ones until then.
    """

    model: MaskedAutoencoder

    def __init__(
        self,
        model: MaskedAutoencoder | dict[str, Any],
        optimizer: OptimizerConfig | dict[str, Any] | None = None,
        seed: int = 0,
        shard: Callable[[MaskedAutoencoder, Any], None] | None = None,
        reduce_once: bool = False,
    ) -> None:
        optimizer = OptimizerConfig(**optimizer) if isinstance(optimizer, dict) else optimizer or OptimizerConfig()
        super().__init__(build_mae(model) if isinstance(model, dict) else model, optimizer)
        self.save_hyperparameters({"model": self.model.architecture, "optimizer": asdict(optimizer), "seed": seed})
        self.seed, self._shard, self._reduce_once = seed, shard, reduce_once
        self.validation_loss = MeanMetric()
        # Of the batches accumulated so far, over all processes: (2,) sum of errors and number of masked tokens; and the
        # latter of the first batch, by which gradients are divided before the number of all is known.
        self._total = self._first_count = torch.zeros(2)

    def configure_model(self) -> None:
        """Shard once, although Lightning calls this for each stage."""
        if self._shard is not None:
            assert self.device_mesh is not None
            self._shard(self.model, self.device_mesh["data_parallel"])
            self._shard = None

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return parameter_groups(self.model, lr, self.optimizer_config)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed the step, so that it is a pure function of (weights, seed, clips consumed, rank)."""
        super().on_train_batch_start(batch, batch_idx)
        if self._reduce_once and isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(self.steps_now)
        position = batch.get("position", self.trainer.global_step)
        if isinstance(data := getattr(self.trainer, "datamodule", None), PretrainDataModule):
            data.position = position
        torch.manual_seed((self.seed * 1_000_003 + position * 65_537 + self.trainer.global_rank) % 2**63)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Log the mean loss over the masked tokens of all processes and of the batches accumulated so far.

        Clips differ in length, hence processes and batches in their numbers of masked tokens. The loss returned is
        weighted so that its gradients, averaged over processes and scaled by `on_after_backward`, are the mean's.
        """
        output = self._forward(batch)
        count = torch.full_like(output.loss, len(output.target))
        total = reduce(torch.stack([output.loss.detach() * count, count]), "sum")
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._total, self._first_count = total, total[1].clamp(min=1)
        else:
            self._total = self._total + total
        self.log("train/loss", self._total[0] / self._total[1].clamp(min=1))
        return output.loss * count * self.trainer.world_size / self._first_count

    def on_after_backward(self) -> None:
        """Lightning has divided by the number of accumulated batches; divide by that of their masked tokens instead."""
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated > 1 and self.steps_now:
            gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(gradients, accumulated * self._first_count / self._total[1].clamp(min=1))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        output = self._forward(batch)
        self.validation_loss.update(output.loss, weight=len(output.target))

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.validation_loss.compute(), prog_bar=True)
        self.validation_loss.reset()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log("test/loss", self.validation_loss.compute())
        self.validation_loss.reset()

    def _forward(self, batch: dict[str, Any]) -> MAEOutput:
        return self.model(batch["waveform"], batch.get("samples", batch.get("length")), batch.get("seed"))
