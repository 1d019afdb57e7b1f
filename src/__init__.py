"""Masked audio encoders: pretrain, measure and use them (Dasheng, Interspeech 2024).

    from src import embed, load_encoder, save_encoder

Importing the package loads nothing heavy; a name loads what it needs when it is asked for.
"""

from typing import Any

__all__ = ["embed", "load_classifier", "load_encoder", "save_encoder"]


def __getattr__(name: str) -> Any:
    if name in ("load_classifier", "load_encoder", "save_encoder"):
        from src import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
