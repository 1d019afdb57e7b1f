"""What is computed once of every clip of a labelled set: embeddings for a frozen encoder, mel statistics."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.audio.decode import SAMPLE_RATE, AudioError
from src.data.labelled.clips import Clip
from src.evaluation.embeddings import embed_clips, embed_frames, mel_statistics
from src.models.classifier import AudioClassifier
from src.progress import progress_bar

_READ_AT_ONCE = 512  # clips that are decoded before they are embedded
_SHOWN = 2000  # clips that take long enough for a progress bar


def embed(model: AudioClassifier, clips: Sequence[Clip]) -> list[Tensor]:
    """What the head reads of each clip, fp32 on the CPU: (D,), or (N, D) of tokens; silence where one is unreadable."""
    rows: list[Tensor] = []
    with progress_bar("embedding", len(clips), len(clips) > _SHOWN) as advance:
        for start in range(0, len(clips), _READ_AT_ONCE):
            waveforms = [read(clip) for clip in clips[start : start + _READ_AT_ONCE]]
            if model.pooling is None:
                found = embed_frames(model.encoder, waveforms, model.layer)
            else:
                found = list(embed_clips(model.encoder, waveforms, model.layer, model.pooling))
            rows += [torch.from_numpy(row) for row in found]
            for _ in waveforms:
                advance()
    return rows


def mel_rows(clips: Sequence[Clip]) -> np.ndarray:
    """(n, 128): mean and deviation over time of each log-mel band."""
    return np.concatenate([mel_statistics([read(clip)]) for clip in clips])


def read(clip: Clip, seconds: float | None = None) -> np.ndarray:
    """Samples (T,) at 16 kHz; a second of silence for a clip that cannot be read."""
    try:
        return clip.source.waveform(clip.number, 0.0, seconds)
    except AudioError:
        return np.zeros(SAMPLE_RATE, np.float32)
