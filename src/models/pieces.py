"""Tokens of a clip too long for memory, piece by piece, equal to those of the clip as a whole.

Two passes: the dB floor lies under the loudest value of the whole clip, so that is looked for first.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from src.models.vit import AudioViT, Layer, Pooling

_CHUNKS_AT_ONCE = 4


@torch.no_grad()
def tokens_in_pieces(
    encoder: AudioViT, blocks: Callable[[], Iterable[np.ndarray]], layer: Layer | Sequence[Layer] = None
) -> Iterator[Tensor]:
    """(n, D) of consecutive tokens, on the encoder's device; together what `encoder(clip)` gives.

    Args:
        blocks: each call gives the clip's samples anew, (T,) fp32 at the encoder's rate, in consecutive blocks of any
            lengths.
        layer: as `AudioViT.forward`.
    """
    assert not encoder.training, "pieces of a clip need encoder.eval()"
    peak = torch.stack([mel.amax() for mel in _mel_pieces(encoder, blocks(), None)]).amax()[None]
    waiting: list[Tensor] = []  # whole chunks
    for mel in _mel_pieces(encoder, blocks(), peak):
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


def pool_pieces(pieces: Iterable[Tensor], pooling: Pooling = "mean") -> Tensor:
    """(D,) or (2 D,) of pieces (n, D), as `src.models.vit.pool` of them all; sums in fp64."""
    count, total, squares, largest = 0, None, None, None
    for piece in pieces:
        values = piece.double()
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


def _mel_pieces(encoder: AudioViT, blocks: Iterable[np.ndarray], peak_db: Tensor | None) -> Iterator[Tensor]:
    """(1, n_mels, F) dB values of consecutive frames, cut where chunks of tokens begin."""
    log_mel, device = encoder.log_mel, encoder.time_pos_embed.device
    hop, frames = log_mel.hop_length, encoder.max_tokens * encoder.patch_embed.patch_frames
    # Frames at a cut are computed with the sound on both sides of it and those beyond it dropped.
    margin = -(-max(log_mel.n_fft // 2, log_mel.shortest_samples) // hop)
    for segment, before, last in _segments(blocks, frames * hop, margin * hop):
        mel, _ = log_mel(torch.from_numpy(segment)[None].to(device), peak_db=peak_db)
        first = before // hop
        yield mel[:, :, first:] if last else mel[:, :, first : first + frames]


def _segments(blocks: Iterable[np.ndarray], size: int, margin: int) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Consecutive segments of `size` samples with `margin` samples of their neighbours on both sides.

    Yields the samples, how many of them lie before the segment's own, and whether it is the last one.
    """
    buffer, before = np.zeros(0, np.float32), 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) > before + size + margin:
            yield buffer[: before + size + margin], before, False
            buffer, before = buffer[before + size - margin :], margin
    yield buffer, before, True
