"""The paper's objective: mean squared error of the normalized masked patches (Dasheng, section 2)."""

from typing import Any

from src.models.mae import MaskedAutoencoder
from src.pretraining.objectives.losses import Losses


def reconstruct(network: MaskedAutoencoder, batch: dict[str, Any]) -> Losses:
    """batch: as from `src.data.pretraining.batch.CropDataset`; waveform is required."""
    output = network(batch["waveform"], batch.get("samples", batch.get("length")), batch.get("seed"))
    return Losses(output.loss, len(output.target))
