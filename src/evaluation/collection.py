"""Embed a collection of any size: from sources to rows of an `EmbeddingFile`, in order.

Clips are processed in windows that fit into memory: decoded by threads, embedded in batches of similar length, and
written. A clip longer than a minute is processed alone, in chunks. On a GPU, the next window is decoded in the
background; on a CPU, decoding and embedding alternate, as they would compete for its cores.
"""

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from src.audio.decode import AudioError, decode_blocks
from src.audio.levels import Levels, oddity, warn_of_oddities
from src.data.sources.annotations import labels_cell
from src.data.sources.source import Source
from src.evaluation.embedding_file import EmbeddingFile, rows
from src.evaluation.embeddings import embed_clips, embed_frames
from src.models.long_clips import LONG_SECONDS, encode_long_clip, pool_chunks
from src.models.packed import packed_linears
from src.models.vit import AudioViT, Layer, Pooling

Level = Literal["clip", "frame"]
_NOT_FINITE = "the encoder gives NaN or inf for it"
_WINDOW_CLIPS, _WINDOW_SECONDS = 512, 1800.0


class Settings(NamedTuple):
    """How embeddings are made. layers: outputs to concatenate. batch_seconds: padded audio per batch."""

    layers: Sequence[Layer] = (None,)
    pooling: Pooling = "mean"
    level: Level = "clip"
    batch_seconds: float = 30.0


class _HasSeconds(Protocol):
    @property
    def seconds(self) -> float: ...


Timed = TypeVar("Timed", bound=_HasSeconds)


class EmbedItem(NamedTuple):
    source: Source
    number: int
    path: str
    seconds: float
    label: str | None
    segment: tuple[str, float] | None = None
    segmented: bool = False


class _Decoded(NamedTuple):
    """waveform: None if it could not be read, for the reason. oddity: as `src.audio.levels.oddity`."""

    waveform: np.ndarray | None
    reason: str
    oddity: str


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
        (path, reason) of clips that could not be read, or whose embedding is not finite. Clips that sound as they are
        hardly meant to are embedded, and counted and named in a warning.
    """
    bad = [entry for source in sources for entry in source.bad_paths]
    with Embedding(encoder, settings, workers, advance) as embedding:
        segmented = any(source.has_segments for source in sources)
        for _, decoded in embedding.decoded([(0, clips_of(sources, file.done, segmented))]):
            bad += embedding.write(file, decoded)
    return bad


class Embedding:
    """Decoding in threads, and embedding of what is decoded. Arguments as `embed_collection`. At the end, a warning
    names clips that sound as they are hardly meant to."""

    def __init__(
        self, encoder: AudioViT, settings: Settings, workers: int, advance: Callable[[int, float], None]
    ) -> None:
        self._encoder, self._settings, self._advance = encoder, settings, advance
        self._pool, self._odd = ThreadPoolExecutor(max(1, workers)), list[tuple[str, str]]()

    def __enter__(self) -> "Embedding":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        warn_of_oddities(self._odd)

    def decoded(self, parts: Iterable[tuple[int, Iterable[EmbedItem]]]) -> Iterator[tuple[int, Iterator["Window"]]]:
        """For each part, with clips, its number and its decoded windows; the next part is decoded in the background."""
        ahead = 1 if self._encoder.time_pos_embed.device.type == "cuda" else 0
        stream = _decoded(((part, window) for part, clips in parts for window in windows(clips)), self._pool, ahead)
        return itertools.groupby(stream, key=lambda window: window.part)

    def write(self, file: EmbeddingFile, decoded: Iterable["Window"]) -> list[tuple[str, str]]:
        """Returns: (path, reason) of clips without a row."""
        bad: list[tuple[str, str]] = []
        for _, clips, waveforms in decoded:
            try:
                if waveforms is None:
                    file.write_part(_long_rows(self._encoder, clips[0], self._settings, self._odd))
                else:
                    file.write_part(_rows(self._encoder, clips, waveforms, self._settings, bad))
                    self._odd += [(c.path, d.oddity) for c, d in zip(clips, waveforms, strict=True) if d.oddity]
            except AudioError as error:  # of a long clip, when the damage is reached
                bad.append((clips[0].path, str(error)))
            self._advance(len(clips), sum(clip.seconds for clip in clips))
        return bad


def clips_of(sources: Sequence[Source], done: Collection[str], segmented: bool = False) -> Iterator[EmbedItem]:
    """Clips with unique paths, without those in `done`. segmented: the table has columns for segments."""
    seen: set[str] = set()
    for source in sources:
        for number in range(len(source)):
            path = source.path(number)
            if path in done or path in seen:
                continue
            seen.add(path)
            label = labels_cell([source.class_names[each] for each in source.labels(number)]) or None
            segment = source.segment(number) if segmented else None
            yield EmbedItem(source, number, path, float(source.seconds[number]), label, segment, segmented)


def windows(clips: Iterable[Timed]) -> Iterator[list[Timed]]:
    """Consecutive clips to hold in memory together; long ones alone."""
    window: list[Timed] = []
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


class Window(NamedTuple):
    """Clips of one part that are in memory together. decoded: None for a long clip."""

    part: int
    clips: list[EmbedItem]
    decoded: list[_Decoded] | None


def _decoded(windows: Iterable[tuple[int, list[EmbedItem]]], pool: ThreadPoolExecutor, ahead: int) -> Iterator[Window]:
    """`ahead` more windows are decoded in the background."""
    waiting: deque[tuple[int, list[EmbedItem], list[Future] | None]] = deque()

    def oldest() -> Window:
        part, clips, futures = waiting.popleft()
        return Window(part, clips, None if futures is None else [future.result() for future in futures])

    for part, clips in windows:
        long = clips[0].seconds > LONG_SECONDS
        waiting.append((part, clips, None if long else [pool.submit(_decode, clip) for clip in clips]))
        if len(waiting) > ahead:
            yield oldest()
    while waiting:
        yield oldest()


def _decode(clip: EmbedItem) -> _Decoded:
    try:
        waveform = clip.source.waveform(clip.number)
    except AudioError as error:
        return _Decoded(None, str(error), "")
    return _Decoded(waveform, "", oddity(waveform, lambda: clip.source.read(clip.number)))


def _rows(
    encoder: AudioViT, window: list[EmbedItem], decoded: list[_Decoded], settings: Settings, bad: list[tuple[str, str]]
) -> Iterator[pa.Table]:
    """One table of the readable clips; at frame level, one per clip. The others are added to `bad`."""
    clips, readable = [], []
    for clip, (waveform, reason, _) in zip(window, decoded, strict=True):
        if waveform is None:
            bad.append((clip.path, reason))
        else:
            clips.append(clip._replace(seconds=len(waveform) / encoder.sample_rate))
            readable.append(waveform)
    if not clips:
        return
    if settings.level == "clip":
        embedded = list(embed_clips(encoder, readable, settings.layers, settings.pooling, settings.batch_seconds))
    else:
        embedded = embed_frames(encoder, readable, settings.layers, settings.batch_seconds)
    finite = [bool(np.isfinite(values).all()) for values in embedded]
    bad += [(clip.path, _NOT_FINITE) for clip, good in zip(clips, finite, strict=True) if not good]
    kept = [row for row, good in enumerate(finite) if good]
    if settings.level == "clip":
        if kept:
            chosen = [clips[row] for row in kept]
            columns = [c.path for c in chosen], [c.seconds for c in chosen], [c.label for c in chosen]
            yield rows(*columns, np.stack([embedded[row] for row in kept]), None, _segments(chosen))
        return
    for row in kept:
        yield _frame_rows(clips[row], embedded[row], encoder.token_times(len(embedded[row])).numpy())


def _long_rows(
    encoder: AudioViT, clip: EmbedItem, settings: Settings, odd: list[tuple[str, str]]
) -> Iterator[pa.Table]:
    """As `_rows`, for one clip that is read in chunks.

    Raises:
        AudioError: it cannot be read to its end; its embedding is not finite.
    """
    encoder.eval()
    levels, encoded = Levels(), clip.source.read(clip.number)
    chunks = encode_long_clip(encoder, lambda: levels.watch(decode_blocks(encoded)), settings.layers)
    with packed_linears(encoder):
        if settings.level == "clip":
            embedding = pool_chunks(chunks, settings.pooling).cpu().numpy()
            yield rows([clip.path], [clip.seconds], [clip.label], _finite(embedding[None]), None, _segments([clip]))
        else:
            first = 0
            for chunk in chunks:
                times = encoder.token_times(first + len(chunk))[first:].numpy()
                yield _frame_rows(clip, _finite(chunk.float().cpu().numpy()), times)
                first += len(chunk)
    if what := levels.oddity(lambda: encoded):
        odd.append((clip.path, what))


def _finite(embedding: np.ndarray) -> np.ndarray:
    if not np.isfinite(embedding).all():
        raise AudioError(_NOT_FINITE)
    return embedding


def _frame_rows(clip: EmbedItem, tokens: np.ndarray, times: np.ndarray) -> pa.Table:
    count = len(tokens)
    columns = [clip.path] * count, [clip.seconds] * count, [clip.label] * count
    return rows(*columns, tokens, times, _segments([clip] * count))


def _segments(clips: list[EmbedItem]) -> list[tuple[str, float] | None] | None:
    return [clip.segment for clip in clips] if clips[0].segmented else None
