"""What pretraining minimizes: a function (network, batch) -> `Losses` per file."""

from src.pretraining.objectives.contrastive import contrast
from src.pretraining.objectives.reconstruction import reconstruct

__all__ = ["contrast", "reconstruct"]
