"""Embeddings of tasks on disk: computed once per encoder, task and view, then memory-mapped.

A folder of the cache per (audio of the task, encoder, view), named by their hash: `rows.f32` (R, D), `counts.npy` (rows
of each clip), `times.npy` (of timestamp tasks, in ms). Folders can be deleted at any time.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch

from src.atomic import publish_folder, scratch_folder
from src.audio.decode import SAMPLE_RATE, AudioError
from src.audio.levels import oddity, warn_of_oddities
from src.data.sources.index import cache_root, digest, mark_used, remove_unused
from src.errors import UserError
from src.evaluation.embeddings import band_statistics, batches_by_length
from src.evaluation.frozen import Batch, Embedded, Frozen, FrozenViT
from src.evaluation.tasks.task import Clip, Task
from src.models.log_mel import LogMel
from src.models.packed import packed_linears

_WINDOW_CLIPS, _WINDOW_SECONDS = 512, 600.0  # decoded and held in memory together
_CALIBRATION_CLIPS, _CALIBRATION_SECONDS = 256, 10.08


def folder_of(task: Task, encoder: Frozen, view: str) -> Path:
    """Where the embeddings of a task lie, or will lie."""
    kind = "frames" if task.timestamps else "scenes"
    calibrated = repr(_calibration(task)) if encoder.calibrated else ""
    return cache_root() / "embeddings" / digest([task.content, encoder.fingerprint, view, kind, calibrated])


def open_rows(folder: Path) -> Embedded:
    """Stored embeddings; the rows are a memory map."""
    mark_used(folder)
    counts, times = np.load(folder / "counts.npy"), folder / "times.npy"
    rows = np.memmap(folder / "rows.f32", np.float32, "r")
    return Embedded(rows.reshape(int(counts.sum()), -1), counts, np.load(times) if times.exists() else None)


def missing(task: Task, encoders: Sequence[Frozen]) -> list[tuple[Frozen, list[str]]]:
    """Encoders with the views that have to be computed."""
    wanted = [
        (encoder, [view for view in encoder.views(task.timestamps) if not folder_of(task, encoder, view).exists()])
        for encoder in encoders
    ]
    return [(encoder, views) for encoder, views in wanted if views]


def embed_task(
    task: Task,
    encoders: Sequence[Frozen],
    workers: int,
    batch_seconds: float = 30.0,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Compute the missing embeddings of a task: each clip is decoded once for all encoders.

    On CPUs, each thread embeds batches of its own on one core, which is faster than to share the cores in each batch.

    Args:
        workers: threads. batch_seconds: padded audio per batch. advance: called with the number of clips just finished.

    Raises:
        UserError: a clip that can't be decoded, an embedding that isn't finite; nothing is stored then.
    """
    wanted = missing(task, encoders)
    if not wanted:
        return
    odd: list[tuple[str, str]] = []
    with contextlib.ExitStack() as stack:
        for encoder, _ in wanted:
            if isinstance(encoder, FrozenViT):
                stack.enter_context(packed_linears(encoder.encoder))
        pool = ThreadPoolExecutor(max(1, workers), initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(pool.shutdown, cancel_futures=True)
        _calibrate(task, [encoder for encoder, _ in wanted if encoder.calibrated], pool)
        writers = {
            (id(encoder), view): stack.enter_context(_writing(folder_of(task, encoder, view)))
            for encoder, views in wanted
            for view in views
        }
        run = pool.map if all(encoder.parallel for encoder, _ in wanted) else map
        for window, waveforms in _decoded(task, pool):
            for clip, waveform in zip(window, waveforms, strict=True):
                if what := oddity(waveform, partial(clip.source.read, clip.number)):
                    odd.append((clip.source.path(clip.number), what))
            batches = batches_by_length([len(each) for each in waveforms], round(batch_seconds * SAMPLE_RATE))
            found: list[dict[tuple[int, str], Embedded]] = []
            for embedded in run(partial(_embed_batch, task, wanted, window, waveforms), batches):
                advance(len(batches[len(found)]))
                found.append(embedded)
            for key, writer in writers.items():
                writer.add(_in_order(batches, [embedded[key] for embedded in found]))
    remove_unused(cache_root() / "embeddings")
    warn_of_oddities(odd, task.name)


def _calibrate(task: Task, encoders: Sequence[Frozen], pool: Executor) -> None:
    if encoders:
        clips = [task.clips[i] for i in _calibration(task)]
        waveforms = list(pool.map(lambda clip: _decode(task, clip, _CALIBRATION_SECONDS), clips))
        statistics = pool.submit(band_statistics, LogMel(), waveforms).result()
        for encoder in encoders:
            encoder.calibrate(statistics)


def _embed_batch(
    task: Task,
    wanted: Sequence[tuple[Frozen, list[str]]],
    window: list[Clip],
    waveforms: list[np.ndarray],
    chosen: list[int],
) -> dict[tuple[int, str], Embedded]:
    """Embeddings of the `chosen` clips of a window, by id of the encoder and view."""
    batch = Batch([waveforms[i] for i in chosen])
    found: dict[tuple[int, str], Embedded] = {}
    for encoder, views in wanted:
        for view, embedded in encoder.embed(batch, views, task.timestamps).items():
            _check_finite(task, encoder, [window[i] for i in chosen], embedded)
            found[id(encoder), view] = embedded
    return found


def _in_order(batches: list[list[int]], parts: list[Embedded]) -> Embedded:
    """Embeddings of all clips of a window, in their order."""
    counts = np.concatenate([part.counts for part in parts])
    ends = np.cumsum(counts)
    order = np.argsort(np.concatenate(batches))
    rows = np.concatenate([np.arange(ends[i] - counts[i], ends[i]) for i in order])
    times = None
    if parts[0].times_ms is not None:
        times = np.concatenate([part.times_ms for part in parts if part.times_ms is not None])[rows]
    return Embedded(np.concatenate([part.rows for part in parts])[rows], counts[order], times)


@dataclass
class _Writer:
    file: IO[bytes]
    counts: list[np.ndarray] = field(default_factory=list)
    times: list[np.ndarray] = field(default_factory=list)

    def add(self, embedded: Embedded) -> None:
        self.file.write(np.ascontiguousarray(embedded.rows, np.float32).tobytes())
        self.counts.append(embedded.counts)
        if embedded.times_ms is not None:
            self.times.append(embedded.times_ms)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[_Writer]:
    """A folder that gets its name when it is complete."""
    with scratch_folder(target.parent) as partial:
        with open(partial / "rows.f32", "wb") as file:
            writer = _Writer(file)
            yield writer
        np.save(partial / "counts.npy", np.concatenate(writer.counts))
        if writer.times:
            np.save(partial / "times.npy", np.concatenate(writer.times))
        publish_folder(partial, target)


def _decoded(task: Task, pool: Executor) -> Iterator[tuple[list[Clip], list[np.ndarray]]]:
    """Windows of clips with their waveforms; the next one is decoded meanwhile."""
    waiting: deque[tuple[list[Clip], Iterator[np.ndarray]]] = deque()
    for window in _windows(task.clips):
        waiting.append((window, pool.map(partial(_decode, task), window)))
        if len(waiting) > 1:
            window, waveforms = waiting.popleft()
            yield window, list(waveforms)
    for window, waveforms in waiting:
        yield window, list(waveforms)


def _windows(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    window: list[Clip] = []
    seconds = 0.0
    for clip in clips:
        length = float(clip.source.seconds[clip.number])
        if window and (len(window) == _WINDOW_CLIPS or seconds + length > _WINDOW_SECONDS):
            yield window
            window, seconds = [], 0.0
        window.append(clip)
        seconds += length
    if window:
        yield window


def _calibration(task: Task) -> list[int]:
    """Up to 256 clips, evenly spaced: of train, or of all folds."""
    clips = [i for i, labels in enumerate(task.labels) if task.folds or labels.part == "train"]
    chosen = np.linspace(0, len(clips) - 1, min(len(clips), _CALIBRATION_CLIPS)).round().astype(int)
    return [clips[i] for i in chosen]


def _decode(task: Task, clip: Clip, seconds: float | None = None) -> np.ndarray:
    try:
        return clip.source.waveform(clip.number, 0.0, seconds)
    except AudioError as error:
        path = clip.source.path(clip.number)
        raise UserError(
            f"{task.name}: {path} can't be read ({error}); replace it, or take it out of the labels"
        ) from None


def _check_finite(task: Task, encoder: Frozen, clips: list[Clip], embedded: Embedded) -> None:
    if np.isfinite(embedded.rows).all():
        return
    row = int(np.flatnonzero(~np.isfinite(embedded.rows).all(1))[0])
    clip = clips[int(np.searchsorted(np.cumsum(embedded.counts), row, side="right"))]
    raise UserError(
        f"{task.name}: {encoder.name} gives NaN or infinity for {clip.source.path(clip.number)}; "
        "listen to the clip, and check the encoder's weights"
    )
