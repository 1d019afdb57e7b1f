"""Embed a collection of any size: from sources to rows of an `EmbeddingFile`, in order.

Clips are processed in windows that fit into memory: decoded by threads, embedded in batches of similar length, and
written. A clip longer than a minute is processed alone, in chunks. On a GPU, the next window is decoded in the
background; on a CPU, decoding and embedding alternate, as they would compete for its cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from src.audio.decode import AudioError, decode_blocks
from src.data.sources.source import Source
from src.evaluation.embedding_file import EmbeddingFile, rows
from src.evaluation.embeddings import embed_clips, embed_frames
from src.models.long_clips import encode_long_clip, pool_chunks
from src.models.vit import AudioViT, Layer, Pooling

Level = Literal["clip", "frame"]
LONG_SECONDS = 60.0  # a longer clip is embedded in chunks
_WINDOW_CLIPS, _WINDOW_SECONDS = 512, 1800.0


class Settings(NamedTuple):
    """How embeddings are made. layers: outputs to concatenate. batch_seconds: padded audio per batch."""

    layers: Sequence[Layer] = (None,)
    pooling: Pooling = "mean"
    level: Level = "clip"
    batch_seconds: float = 30.0


class EmbedItem(NamedTuple):
    source: Source
    number: int
    path: str
    seconds: float
    label: str | None


def embed_collection(
    encoder: AudioViT,
    sources: Sequence[Source],
    file: EmbeddingFile,
    settings: Settings,
    workers: int,
    advance: Callable[[int, float], None],
) -> list[tuple[str, str]]:
    """Write one row per clip (or per token), except for clips already in `file`.

    Args:
        workers: decoding threads. advance: called with the clips and seconds just finished.

    Returns:
        (path, reason) of clips that could not be read.
    """
    bad = [entry for source in sources for entry in source.bad_paths]
    ahead = 1 if encoder.time_pos_embed.device.type == "cuda" else 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for window, waveforms in _decoded(windows(clips_of(sources, file.done)), pool, ahead):
            try:
                if waveforms is None:
                    file.write_part(_long_rows(encoder, window[0], settings))
                else:
                    bad += [
                        (c.path, str(w)) for c, w in zip(window, waveforms, strict=True) if isinstance(w, AudioError)
                    ]
                    file.write_part(_rows(encoder, window, waveforms, settings))
            except AudioError as error:  # of a long clip, when the damage is reached
                bad.append((window[0].path, str(error)))
            advance(len(window), sum(clip.seconds for clip in window))
    return bad


def clips_of(sources: Sequence[Source], done: set[str]) -> Iterator[EmbedItem]:
    """Clips with unique paths, without those in `done`."""
    seen: set[str] = set()
    for source in sources:
        for number in range(len(source)):
            path = source.path(number)
            if path in done or path in seen:
                continue
            seen.add(path)
            label = ";".join(source.class_names[each] for each in source.labels(number)) or None
            yield EmbedItem(source, number, path, float(source.seconds[number]), label)


def windows(clips: Iterable[EmbedItem]) -> Iterator[list[EmbedItem]]:
    """Consecutive clips to hold in memory together; long ones alone."""
    window: list[EmbedItem] = []
    seconds = 0.0
    for clip in clips:
        long = clip.seconds > LONG_SECONDS
        if window and (long or len(window) == _WINDOW_CLIPS or seconds + clip.seconds > _WINDOW_SECONDS):
            yield window
            window, seconds = [], 0.0
        if long:
            yield [clip]
        else:
            window.append(clip)
            seconds += clip.seconds
    if window:
        yield window


def _decoded(
    windows: Iterable[list[EmbedItem]], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[list[EmbedItem], list[np.ndarray | AudioError] | None]]:
    """Windows with their waveforms, None for a long clip; `ahead` more windows are decoded in the background."""
    waiting: deque[tuple[list[EmbedItem], list[Future] | None]] = deque()

    def oldest() -> tuple[list[EmbedItem], list[np.ndarray | AudioError] | None]:
        window, futures = waiting.popleft()
        return window, None if futures is None else [future.result() for future in futures]

    for window in windows:
        long = window[0].seconds > LONG_SECONDS
        waiting.append((window, None if long else [pool.submit(_decode, clip) for clip in window]))
        if len(waiting) > ahead:
            yield oldest()
    while waiting:
        yield oldest()


def _decode(clip: EmbedItem) -> np.ndarray | AudioError:
    try:
        return clip.source.waveform(clip.number)
    except AudioError as error:
        return error


def _rows(
    encoder: AudioViT, window: list[EmbedItem], waveforms: list[np.ndarray | AudioError], settings: Settings
) -> Iterator[pa.Table]:
    """One table of the readable clips; at frame level, one per clip."""
    clips, readable = [], []
    for clip, waveform in zip(window, waveforms, strict=True):
        if not isinstance(waveform, AudioError):
            clips.append(clip._replace(seconds=len(waveform) / encoder.sample_rate))
            readable.append(waveform)
    if not clips:
        return
    if settings.level == "clip":
        embedding = embed_clips(encoder, readable, settings.layers, settings.pooling, settings.batch_seconds)
        yield rows([c.path for c in clips], [c.seconds for c in clips], [c.label for c in clips], embedding)
        return
    frames = embed_frames(encoder, readable, settings.layers, settings.batch_seconds)
    for clip, tokens in zip(clips, frames, strict=True):
        yield _frame_rows(clip, tokens, encoder.token_times(len(tokens)).numpy())


def _long_rows(encoder: AudioViT, clip: EmbedItem, settings: Settings) -> Iterator[pa.Table]:
    """As `_rows`, for one clip that is read in chunks."""
    encoder.eval()
    chunks = encode_long_clip(encoder, lambda: decode_blocks(clip.source.read(clip.number)), settings.layers)
    if settings.level == "clip":
        embedding = pool_chunks(chunks, settings.pooling).cpu().numpy()
        yield rows([clip.path], [clip.seconds], [clip.label], embedding[None])
        return
    first = 0
    for chunk in chunks:
        times = encoder.token_times(first + len(chunk))[first:].numpy()
        yield _frame_rows(clip, chunk.float().cpu().numpy(), times)
        first += len(chunk)


def _frame_rows(clip: EmbedItem, tokens: np.ndarray, times: np.ndarray) -> pa.Table:
    count = len(tokens)
    return rows([clip.path] * count, [clip.seconds] * count, [clip.label] * count, tokens, times)
