"""Encode a clip too long for memory chunk by chunk; the tokens equal those of the whole clip.

It takes two passes over the samples: the dB floor is relative to the clip's maximum, which is found first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from src.models.log_mel import LogMel
from src.models.vit import AudioViT, Layer, Pooling

LONG_SECONDS = 60.0  # a clip longer than this is encoded in chunks
_CHUNKS_AT_ONCE = 4


@torch.no_grad()
def encode_clips(encoder: AudioViT, waveform: Tensor, length: Tensor, layer: Layer | Sequence[Layer] = None) -> Tensor:
    """As `encoder(waveform, length, layer)`, without gradients; batches of long clips are encoded chunk by chunk."""
    if waveform.shape[1] <= LONG_SECONDS * encoder.sample_rate:
        return encoder(waveform, length, layer)
    rows = []
    for clip, samples in zip(waveform, length.tolist(), strict=True):
        blocks = [clip[:samples].cpu().numpy()]
        rows.append(torch.cat(list(encode_long_clip(encoder, lambda blocks=blocks: blocks, layer))))  # type: ignore[misc]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.no_grad()
def encode_long_clip(
    encoder: AudioViT, blocks: Callable[[], Iterable[np.ndarray]], layer: Layer | Sequence[Layer] = None
) -> Iterator[Tensor]:
    """Yield the tokens of consecutive chunks, (n, D) each, on the encoder's device.

    Args:
        encoder: in evaluation mode.
        blocks: called twice; returns the clip's samples as consecutive blocks (T,) of any length, fp32 at the encoder's
            sample rate.
        layer: as in `AudioViT.forward`.
    """
    assert not encoder.training, "a long clip needs encoder.eval()"
    log_mel, frames = encoder.log_mel, encoder.max_tokens * encoder.patch_embed.patch_frames
    peak = torch.stack([mel.amax() for mel in mel_segments(log_mel, blocks(), frames)]).amax()[None]
    waiting: list[Tensor] = []  # full chunks
    for mel in mel_segments(log_mel, blocks(), frames, peak):
        patches = encoder.patch_embed.patchify(encoder.init_bn(mel))
        for chunk in patches.split(encoder.max_tokens, dim=1):
            if chunk.shape[1] < encoder.max_tokens or len(waiting) == _CHUNKS_AT_ONCE:
                yield from _encode(encoder, waiting, layer)
                waiting = []
            waiting.append(chunk)
            if chunk.shape[1] < encoder.max_tokens:
                yield from _encode(encoder, waiting, layer)
                waiting = []
    yield from _encode(encoder, waiting, layer)


def pool_chunks(chunks: Iterable[Tensor], pooling: Pooling = "mean") -> Tensor:
    """Pool the tokens of all `chunks` (n, D) into (D,) or (2 D,), as `src.models.vit.pool` does; sums are in fp64."""
    count, total, squares, largest = 0, None, None, None
    for chunk in chunks:
        values = chunk.double()
        count += len(values)
        sums, square_sums, maxima = values.sum(0), values.square().sum(0), values.amax(0)
        if total is None or squares is None or largest is None:
            total, squares, largest = sums, square_sums, maxima
        else:
            total, squares, largest = total + sums, squares + square_sums, torch.maximum(largest, maxima)
    assert total is not None and squares is not None and largest is not None, "a clip has at least one token"
    mean = total / count
    if pooling == "mean":
        return mean.float()
    if pooling == "max":
        return largest.float()
    if pooling == "mean_max":
        return torch.cat([mean, largest]).float()
    return torch.cat([mean, (squares / count - mean.square()).clamp(min=1e-12).sqrt()]).float()


def _encode(encoder: AudioViT, chunks: list[Tensor], layer: Layer | Sequence[Layer]) -> Iterator[Tensor]:
    if chunks:
        yield from encoder.encode_chunk(torch.cat(chunks), None, layer)


def mel_segments(
    log_mel: LogMel, blocks: Iterable[np.ndarray], frames: int, peak_db: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield (1, n_mels, F) in dB for consecutive segments of `frames` frames.

    Args:
        peak_db: (1,) maximum over the whole clip; None takes each segment's own.
    """
    hop = log_mel.hop_length
    # Segments overlap, so that frames at a boundary see the audio on both sides; surplus frames are dropped.
    margin = -(-max(log_mel.n_fft // 2, log_mel.min_samples) // hop)
    for segment, before, last in _segments(blocks, frames * hop, margin * hop):
        mel, _ = log_mel(torch.from_numpy(segment)[None].to(log_mel.window.device), peak_db=peak_db)
        first = before // hop
        yield mel[:, :, first:] if last else mel[:, :, first : first + frames]


def _segments(blocks: Iterable[np.ndarray], size: int, margin: int) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Yield consecutive segments of `size` samples with `margin` samples of context on both sides.

    Each comes with the number of context samples before it and whether it is the last one.
    """
    buffer, before = np.zeros(0, np.float32), 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > before + size + margin:
            yield buffer[: before + size + margin], before, False
            buffer, before = buffer[before + size - margin :], margin
    yield buffer, before, True
