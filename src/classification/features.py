"""Features computed once per clip of a labeled set: embeddings by a frozen encoder, mel statistics."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from src.audio.decode import AudioError
from src.data.labelled.clips import Clip
from src.errors import UserError
from src.evaluation.collection import windows
from src.evaluation.embeddings import embed_clips, embed_frames, mel_statistics
from src.models.classifier import AudioClassifier
from src.progress import progress_bar

_PROGRESS_CLIPS = 2000  # more clips than this get a progress bar


def embed(model: AudioClassifier, clips: Sequence[Clip]) -> list[Tensor]:
    """Input of the head for each clip, fp32 on the CPU: (D,), or (N, D) at frame level.

    Half an hour of audio is in memory at a time, or one longer clip.

    Raises:
        UserError: a clip cannot be read; the encoder gives NaN or inf for one.
    """
    rows: list[Tensor] = []
    with progress_bar("embedding", len(clips), len(clips) > _PROGRESS_CLIPS) as advance:
        for window in windows(clips):
            waveforms = [read(clip) for clip in window]
            if model.pooling is None:
                embedded = embed_frames(model.encoder, waveforms, model.layer)
            else:
                embedded = list(embed_clips(model.encoder, waveforms, model.layer, model.pooling))
            for clip, row in zip(window, embedded, strict=True):
                if not np.isfinite(row).all():
                    raise UserError(f"the encoder gives NaN or inf for {clip.key}; remove the clip, or use another")
                rows.append(torch.from_numpy(row))
                advance()
    return rows


def mel_rows(clips: Sequence[Clip]) -> np.ndarray:
    """Mean and deviation over time of each log-mel band, (n, 128)."""
    return np.concatenate([mel_statistics([read(clip)]) for clip in clips])


def read(clip: Clip, seconds: float | None = None) -> np.ndarray:
    """Samples (T,) at 16 kHz.

    Raises:
        UserError: it cannot be read any more; clips that cannot be decoded were left out when the set was read.
    """
    try:
        return clip.source.waveform(clip.number, 0.0, seconds)
    except AudioError as error:
        raise UserError(f"{clip.key} cannot be read any more ({error}); run it again") from None
