"""Makes a step a pure function of (weights, seed, clips consumed, rank), so that no random state has to be saved."""

from typing import Any

import lightning.pytorch as L
import torch


class ExactResume(L.Callback):
    """Tells the data where the run stands, and seeds dropout and drop-path for each step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        trainer.datamodule.position = batch["position"]  # type: ignore[attr-defined]
        torch.manual_seed((self.seed * 1_000_003 + batch["position"] * 65_537 + trainer.global_rank) % 2**63)
