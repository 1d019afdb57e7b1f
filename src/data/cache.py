"""The decoded cache: clips are decoded once, into a memory-mapped file of 16-bit samples, as decoding is slow."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.atomic import writing
from src.audio.decode import SAMPLE_RATE, AudioError, Encoded, decode
from src.data.sources.annotations import Annotation
from src.data.sources.index import cache_root
from src.data.sources.source import Source
from src.errors import UserError
from src.progress import progress_bar

_CHUNK_SECONDS = 600  # decoded at a time, to bound memory
_PROGRESS_BAR_BYTES = 100e6  # larger caches show a progress bar


class _Clip(NamedTuple):
    samples: np.ndarray  # int16
    scale: float


def cache_bytes(source: Source) -> int:
    """Size of the decoded cache of a source."""
    return int(source.seconds.sum() * SAMPLE_RATE) * 2


class CachedSource(Source):
    """The same clips, read from the cache. Clips that fail to decode are left out and added to `bad`.

    Each clip is stored with its own scale, max(1, peak) / 32767, so that levels above full scale survive.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        folder = cache_root() / "decoded" / source.fingerprint
        if not (folder / "index.json").exists():
            _write(source, folder)
        index = json.loads((folder / "index.json").read_text())
        self._kept = np.array(index["kept"], dtype=np.int64)
        self._ends = np.cumsum(np.array(index["samples"], dtype=np.int64))
        self._begins = self._ends - np.array(index["samples"], dtype=np.int64)
        self._scale = np.array(index["scale"], dtype=np.float32)
        self._file = folder / "samples.i16"
        self._samples: np.ndarray | None = None
        self.seconds = (self._ends - self._begins) / SAMPLE_RATE
        self.bad = [*source.bad, *((name, reason) for name, reason in index["bad"])]
        self.bad_paths = [*source.bad_paths, *((name, reason) for name, reason in index["bad"])]
        self.fingerprint, self.class_names, self.shards = source.fingerprint, source.class_names, source.shards
        self.missing = source.missing

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        if self._samples is None:
            self._samples = np.memmap(self._file, dtype=np.int16, mode="r")
        begin, end = int(self._begins[i]), int(self._ends[i])
        begin = min(begin + round(start_seconds * SAMPLE_RATE), end - 1)
        if seconds is not None:
            end = min(end, begin + max(1, round(seconds * SAMPLE_RATE)))
        return self._samples[begin:end] * self._scale[i]

    def _name(self, i: int) -> str:
        return self._source.name(i)

    def _read(self, i: int) -> Encoded:
        return self._source.read(i)

    def _path(self, i: int) -> str:
        return self._source.path(i)

    def annotation(self, i: int) -> Annotation | None:
        return self._source.annotation(int(self._kept[i]))

    def labels(self, i: int) -> tuple[int, ...]:
        return self._source.labels(int(self._kept[i]))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_samples": None}  # each worker maps the file itself


def _write(source: Source, folder: Path) -> None:
    """Write the samples, then the index, atomically: a cache without an index is not used.

    Raises:
        UserError: disk full or no permission.
    """
    kept, samples, scale, bad = [], [], [], []
    try:
        with (
            writing(folder / "samples.i16") as partial,
            open(partial, "wb") as file,
            progress_bar("decoding", len(source), cache_bytes(source) > _PROGRESS_BAR_BYTES) as advance,
        ):
            for i, clip in enumerate(_decoded(source)):
                advance()
                if isinstance(clip, str):
                    bad.append((source.name(i), clip))
                    continue
                clip.samples.tofile(file)
                kept.append(i)
                samples.append(len(clip.samples))
                scale.append(clip.scale)
        with writing(folder / "index.json") as partial:
            partial.write_text(json.dumps({"kept": kept, "samples": samples, "scale": scale, "bad": bad}))
    except OSError as error:
        raise UserError(
            f"the decoded cache {folder} cannot be written ({error.strerror or error}); free up space, "
            "set AUDIO_ENCODER_CACHE to another folder, or turn it off with data.cache_gigabytes=0"
        ) from error


def _decoded(source: Source) -> Iterator[_Clip | str]:
    """Each clip, or the reason it cannot be decoded, in order; about ten minutes of audio in memory at a time."""

    def decode_one(i: int) -> _Clip | str:
        try:
            waveform = decode(source.read(i))
        except AudioError as error:
            return str(error)
        scale = max(1.0, float(np.abs(waveform).max())) / 32767
        return _Clip(np.round(waveform / scale).astype(np.int16), scale)

    ends = np.flatnonzero(np.diff(np.cumsum(source.seconds) // _CHUNK_SECONDS)) + 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for chunk in np.split(np.arange(len(source)), ends):
            yield from pool.map(decode_one, chunk.tolist())
