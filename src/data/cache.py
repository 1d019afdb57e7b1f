"""The decoded cache: clips are decoded once, into a memory-mapped file of 16-bit samples, as decoding is slow."""

import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from src.atomic import one_at_a_time, publish_folder, scratch_folder
from src.audio.decode import SAMPLE_RATE, AudioError, Encoded, decode
from src.audio.levels import oddity
from src.data.sources.annotations import Annotation
from src.data.sources.index import cache_root, mark_used, remove_unused
from src.data.sources.source import Source
from src.errors import UserError
from src.progress import progress_bar
from src.share import cores

_CHUNK_SECONDS = 600  # decoded at a time, to bound memory
_LOWEST_PEAK = 1e-30  # of quieter clips, the scale would not be a normal fp32 number
_PROGRESS_BAR_BYTES = 100e6  # larger caches show a progress bar


class _Clip(NamedTuple):
    samples: np.ndarray  # int16
    scale: float
    oddity: str


def cache_bytes(source: Source) -> int:
    """Size of the decoded cache of a source."""
    return int(source.seconds.sum() * SAMPLE_RATE) * 2


class CachedSource(Source):
    """The same clips, each decoded once. Clips that fail to decode are left out and added to `bad`.

    Each clip is stored in 16 bits with its own scale, peak / 32767: a sample is off by peak / 65534 at most,
    but for the rounding of fp32.

    Args:
        store: whether the samples are kept and read from the cache. Without, it is only found out which clips can be
            decoded, and the others are decoded each time.

    Attributes:
        odd: (path, oddity) of clips that sound as they are hardly meant to (`src.audio.levels`).
    """

    def __init__(self, source: Source, store: bool = True) -> None:
        self._source, self._store = source, store
        self._folder = cache_root() / ("decoded" if store else "checked") / source.fingerprint
        file = self._folder / "index.json"
        index = _read(file)
        if index is None:
            with one_at_a_time(self._folder):  # one process decodes, the others on the machine read what it wrote
                index = _read(file) or (_store(source, self._folder) if store else _check(source, self._folder))
                remove_unused(self._folder.parent)
        mark_used(self._folder)
        self._kept = np.array(index["kept"], dtype=np.int64)
        self._ends = np.cumsum(np.array(index["samples"], dtype=np.int64))
        self._begins = self._ends - np.array(index["samples"], dtype=np.int64)
        self._scale = np.array(index["scale"], dtype=np.float32)
        self._open_samples()
        self.seconds = (self._ends - self._begins) / SAMPLE_RATE
        self.bad = [*source.bad, *((source.name(i), reason) for i, reason in index["bad"])]
        self.bad_paths = [*source.bad_paths, *((source.path(i), reason) for i, reason in index["bad"])]
        self.odd = [(source.path(i), what) for i, what in index["odd"]]
        self.fingerprint, self.shards, self.missing = source.fingerprint, source.shards, source.missing

    @property
    def class_names(self) -> Sequence[str]:
        return self._source.class_names

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        if self._samples is None:
            return self._source.waveform(int(self._kept[i]), start_seconds, seconds)
        begin, end = int(self._begins[i]), int(self._ends[i])
        begin = min(begin + round(start_seconds * SAMPLE_RATE), end - 1)
        if seconds is not None:
            end = min(end, begin + max(1, round(seconds * SAMPLE_RATE)))
        return self._samples[begin:end] * self._scale[i]

    def crops(self, i: int, ranges: Sequence[tuple[float, float]]) -> list[np.ndarray | AudioError]:
        return [self.waveform(i, *each) for each in ranges]

    def _open_samples(self) -> None:
        self._samples: np.ndarray | None = None
        if self._store:
            file = self._folder / "samples.i16"
            self._samples = np.memmap(file, np.int16, "r") if len(self._kept) else np.zeros(0, np.int16)

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
        return {**self.__dict__, "_samples": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open_samples()  # each worker maps the file itself


def _read(file: Path) -> dict[str, list] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _store(source: Source, folder: Path) -> dict[str, list]:
    """Decode all clips and write the cache as a whole folder, which never changes; returns its index.

    Raises:
        UserError: disk full or no permission.
    """
    try:
        with scratch_folder(folder.parent) as partial:
            with open(partial / "samples.i16", "wb") as file:
                index = _decode_all(source, file)
            (partial / "index.json").write_text(json.dumps(index), encoding="utf-8")
            publish_folder(partial, folder)
    except OSError as error:
        raise UserError(
            f"the decoded cache {folder} cannot be written ({error.strerror or error}); free up space, set "
            "AUDIO_ENCODER_CACHE to another folder, or turn it off with data.cache_gigabytes=0"
        ) from error
    return index


def _check(source: Source, folder: Path) -> dict[str, list]:
    """Decode all clips to find the damaged ones, and write down which they are."""
    index = _decode_all(source, None)
    try:
        with scratch_folder(folder.parent) as partial:
            (partial / "index.json").write_text(json.dumps(index), encoding="utf-8")
            publish_folder(partial, folder)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be written ({error.strerror or error}): the clips will be decoded again at the next "
            "start to find the damaged ones; set AUDIO_ENCODER_CACHE to another folder",
            stacklevel=2,
        )
    return index


def _decode_all(source: Source, samples_file: BinaryIO | None) -> dict[str, list]:
    """The index of a cache; the samples of all clips that can be decoded go to the file."""
    index: dict[str, list] = {"kept": [], "samples": [], "scale": [], "bad": [], "odd": []}
    with progress_bar("decoding", len(source), cache_bytes(source) > _PROGRESS_BAR_BYTES) as advance:
        for i, clip in enumerate(_decoded(source)):
            advance()
            if isinstance(clip, str):
                index["bad"].append((i, clip))
                continue
            if samples_file is not None:
                clip.samples.tofile(samples_file)
            for name, value in (("kept", i), ("samples", len(clip.samples)), ("scale", clip.scale)):
                index[name].append(value)
            if clip.oddity:
                index["odd"].append((i, clip.oddity))
    return index


def _decoded(source: Source) -> Iterator[_Clip | str]:
    """Each clip, or the reason it cannot be decoded, in order; about ten minutes of audio in memory at a time."""

    def decode_one(i: int) -> _Clip | str:
        try:
            encoded = source.read(i)
            waveform = decode(encoded)
        except AudioError as error:
            return str(error)
        scale = max(float(np.abs(waveform).max()), _LOWEST_PEAK) / 32767
        return _Clip(np.round(waveform / scale).astype(np.int16), scale, oddity(waveform, lambda: encoded))

    ends = np.flatnonzero(np.diff(np.cumsum(source.seconds) // _CHUNK_SECONDS)) + 1
    with ThreadPoolExecutor(cores()) as pool:
        for chunk in np.split(np.arange(len(source)), ends):
            yield from pool.map(decode_one, chunk.tolist())
