"""Load and save encoders: shortcuts to `src.encoders`."""

from src.encoders.load import load_classifier, load_encoder
from src.encoders.save import save_encoder

__all__ = ["load_classifier", "load_encoder", "save_encoder"]
