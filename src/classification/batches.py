"""A classifier's outputs for audio of any length, without gradients: in batches, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from src.evaluation.embeddings import batches_by_length
from src.models.classifier import AudioClassifier
from src.models.long_clips import encode_clips
from src.models.vit import pool

Segment = tuple[int, float, Tensor]  # clip, start in seconds, (1, T) samples
_WINDOW_SECONDS, _BATCH_SECONDS = 600.0, 60.0  # of audio in memory, and padded in a batch


@torch.no_grad()
def logits_of(model: AudioClassifier, waveform: Tensor, length: Tensor) -> Tensor:
    """As `model(waveform, length)`; batches of clips over a minute are encoded chunk by chunk."""
    tokens = encode_clips(model.encoder, waveform, length, model.layer)
    if model.pooling is None:
        return model.head(tokens)
    return model.head(pool(tokens, model.encoder.num_tokens(length), model.pooling))


def probabilities_of(
    models: Sequence[AudioClassifier], segments: Iterable[Segment]
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield clip, start and mean probabilities of the models, (C,) or (N, C) at frame level, in order.

    Segments of similar length form a batch, on the device of the models.
    """
    for window in _windows(segments, models[0].encoder.sample_rate):
        rows: dict[int, np.ndarray] = {}
        lengths = [waveform.shape[1] for _, _, waveform in window]
        for chosen in batches_by_length(lengths, round(_BATCH_SECONDS * models[0].encoder.sample_rate)):
            found = _batch([window[i][2][0] for i in chosen], models)
            rows.update(zip(chosen, found, strict=True))
        yield from ((clip, start, rows[i]) for i, (clip, start, _) in enumerate(window))


def _windows(segments: Iterable[Segment], sample_rate: int) -> Iterator[list[Segment]]:
    """Consecutive segments to hold in memory together; at least one."""
    window: list[Segment] = []
    samples = 0
    for segment in segments:
        window.append(segment)
        samples += segment[2].shape[1]
        if samples >= _WINDOW_SECONDS * sample_rate:
            yield window
            window, samples = [], 0
    if window:
        yield window


def _batch(waveforms: list[Tensor], models: Sequence[AudioClassifier]) -> list[np.ndarray]:
    """Mean probabilities of each clip (T,)."""
    device = models[0].encoder.time_pos_embed.device
    waveform = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True).to(device)
    length = torch.tensor([len(each) for each in waveforms], device=device)
    mean = torch.stack([model.probabilities(logits_of(model, waveform, length)) for model in models]).mean(0)
    rows = mean.float().cpu().numpy()
    if models[0].pooling is not None:
        return list(rows)
    num_tokens = models[0].encoder.num_tokens(length).tolist()
    return [row[:count] for row, count in zip(rows, num_tokens, strict=True)]
