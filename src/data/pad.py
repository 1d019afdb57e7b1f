"""Clips of different lengths as one tensor."""

from typing import Any

import torch

from src.audio.decode import SAMPLE_RATE


def pad(waveforms: list[torch.Tensor], pad_seconds: float | None = None) -> dict[str, Any]:
    """Pad clips (T,) with zeros: waveform (B, T) and length (B,), in samples.

    With `pad_seconds`, every clip is padded or cut to that length, and `length` counts the padding as audio; `heard`
    (B,) does not.
    """
    length = torch.tensor([len(waveform) for waveform in waveforms])
    if pad_seconds is None:
        equal = len(set(length.tolist())) == 1
        whole = torch.stack(waveforms) if equal else torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
        return {"waveform": whole, "length": length}
    samples = round(pad_seconds * SAMPLE_RATE)
    padded = torch.zeros(len(waveforms), samples)
    for row, waveform in enumerate(waveforms):
        padded[row, : len(waveform)] = waveform[:samples]
    return {"waveform": padded, "length": torch.full_like(length, samples), "heard": length.clamp(max=samples)}
