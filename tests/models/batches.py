"""Clips of different lengths as a batch."""

import torch
from torch import Tensor


def pad_batch(clips: list[Tensor], padding: float | None = None, surplus: int = 0) -> tuple[Tensor, Tensor]:
    """Waveforms (B, T) and lengths (B,). Samples beyond a clip's end are `padding`, or loud noise if None."""
    length = torch.tensor([len(clip) for clip in clips])
    shape = (len(clips), int(length.max()) + surplus)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    waveform = noise if padding is None else torch.full(shape, padding)
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = clip
    return waveform, length
