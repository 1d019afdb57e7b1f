"""An encoder with a linear head: waveform in, class logits out, per clip or per token."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from src.models.vit import AudioViT, Layer, Pooling


class Standardize(nn.Module):
    """Subtract the mean of each dimension and divide by its standard deviation. The identity until `fit` is called.

    Lets a linear layer use one learning rate for all dimensions; unlike LayerNorm, it keeps each embedding's level.
    """

    mean: Tensor  # (D,)
    deviation: Tensor  # (D,)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Take mean and standard deviation from `embeddings` (n, D)."""
        self.mean.copy_(embeddings.mean(0))
        self.deviation.copy_(embeddings.std(0) + 1e-6 if len(embeddings) > 1 else torch.ones_like(self.mean))

    def forward(self, embedding: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (embedding - self.mean) / self.deviation


def make_head(
    embed_dim: int, layer: Layer | Sequence[Layer], pooling: Pooling | None, num_classes: int
) -> nn.Sequential:
    """`Standardize` and a zero-initialized linear layer. Arguments as in `AudioClassifier`."""
    width = embed_dim * (len(layer) if isinstance(layer, Sequence) else 1)
    width *= 2 if pooling in ("mean_std", "mean_max") else 1
    linear = nn.Linear(width, num_classes)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(Standardize(width), linear)


class AudioClassifier(nn.Module):
    """An encoder, `Standardize` and a linear layer.

    Args:
        encoder: it is cut (`AudioViT.cut`) at the highest block of `layer`: those above are neither run nor stored.
        class_names: one per logit, in order.
        layer, pooling: as in `AudioViT.embed`; pooling=None gives logits per token (40 ms) instead of per clip.
        multi: whether a clip or token may have several classes (sigmoid) or has exactly one (softmax).
    """

    def __init__(
        self,
        encoder: AudioViT,
        class_names: Sequence[str],
        layer: Layer | Sequence[Layer] = None,
        pooling: Pooling | None = "mean",
        multi: bool = False,
    ) -> None:
        super().__init__()
        numbers = list(layer) if isinstance(layer, Sequence) else [layer]
        blocks = [number for number in numbers if number is not None]
        self.encoder = encoder.cut(max(blocks)) if len(blocks) == len(numbers) else encoder
        self.class_names, self.layer = list(class_names), layer
        self.pooling: Pooling | None = pooling
        self.multi = multi
        self.head = make_head(encoder.embed_dim, layer, pooling, len(self.class_names))

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor except the encoder, as plain values."""
        return {"class_names": self.class_names, "layer": self.layer, "pooling": self.pooling, "multi": self.multi}

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (..., C) -> (..., C) in [0, 1]."""
        return logits.sigmoid() if self.multi else logits.softmax(-1)

    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Tensor:
        """(B, T), (B,) samples -> logits (B, C), or (B, N, C) per token."""
        return self.head(self.embed(waveform, length))

    def embed(self, waveform: Tensor, length: Tensor | None = None) -> Tensor:
        """Input of the head: (B, D) or (B, 2 D), or tokens (B, N, D)."""
        if self.pooling is None:
            return self.encoder(waveform, length, self.layer)
        return self.encoder.embed(waveform, length, self.layer, self.pooling)
