"""An encoder with a linear head: waveform in, logits of the classes out, for each clip or each token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.models.vit import AudioViT, Layer, Pooling


class Standardise(nn.Module):
    """Each of the last axis' values less its mean, over its deviation: constants that `fit` takes from embeddings;
    before, identity.

    With it a linear layer learns at one rate in all dimensions; unlike a LayerNorm it keeps each embedding's level.
    """

    mean: Tensor  # (D,)
    deviation: Tensor  # (D,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """embeddings: (n, D)."""
        self.mean.copy_(embeddings.mean(0))
        self.deviation.copy_(embeddings.std(0) + 1e-6 if len(embeddings) > 1 else torch.ones_like(self.mean))

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (embedding - self.mean) / self.deviation


def make_head(embed_dim: int, pooling: Pooling | None, num_classes: int) -> nn.Sequential:
    """`Standardise`, and a linear layer that begins at zero: all classes alike. pooling: None reads tokens."""
    width = embed_dim * (2 if pooling in ("mean_std", "mean_max") else 1)
    linear = nn.Linear(width, num_classes)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(Standardise(width), linear)


class AudioClassifier(nn.Module):
    """Standardised embedding and a linear layer.

    Args:
        class_names: of the logits, in their order. layer: the read-out, as `AudioViT.embed`. pooling: the same, None
            answers for each token (40 ms), not each clip.
        multi: whether a clip or token may have several classes: then a sigmoid belongs on the logits, else a softmax.
    """

    def __init__(
        self,
        encoder: AudioViT,
        class_names: Sequence[str],
        layer: Layer = None,
        pooling: Pooling | None = "mean",
        multi: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.class_names = encoder, list(class_names)
        self.layer: Layer = layer
        self.pooling: Pooling | None = pooling
        self.multi = multi
        self.head = make_head(encoder.embed_dim, pooling, len(self.class_names))

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values: with the encoder they make the same network."""
        return {"class_names": self.class_names, "layer": self.layer, "pooling": self.pooling, "multi": self.multi}

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., C), from 0 to 1."""
        return logits.sigmoid() if self.multi else logits.softmax(-1)

    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Tensor:
        """(B, T), (B,) samples -> logits (B, C), or (B, N, C) of tokens."""
        return self.head(self.embed(waveform, length))

    def embed(self, waveform: Tensor, length: Tensor | None = None) -> Tensor:
        """What the head sees: (B, D), (B, 2 D), or (B, N, D) of tokens."""
        if self.pooling is None:
            return self.encoder(waveform, length, self.layer)
        return self.encoder.embed(waveform, length, self.layer, self.pooling)
