"""A set that fits is decoded once, into a memory-mapped file of 16-bit samples: decoding is the cost of compressed audio."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from src.config import ConfigError
from src.data.decode import SAMPLE_RATE, AudioError, Encoded, decode
from src.data.index import cache_root
from src.data.sources import Source

_CHUNK = 256  # clips decoded before they are written, so that memory stays bounded


def cache_bytes(source: Source) -> int:
    """What the cache of a source will take."""
    return int(source.seconds.sum() * SAMPLE_RATE) * 2


class CachedSource(Source):
    """The same clips, from the cache; those that do not decode join `bad` and are left out.

    Each clip is stored with a scale of its own, max(1, peak) / 32767, so that sounds over full scale survive.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        folder = cache_root() / "decoded" / hashlib.sha256(source.fingerprint.encode()).hexdigest()[:32]
        if not (folder / "index.json").exists():
            _write(source, folder)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self._kept = np.array(index["kept"], dtype=np.int64)
        self._ends = np.cumsum(np.array(index["samples"], dtype=np.int64))
        self._begins = self._ends - np.array(index["samples"], dtype=np.int64)
        self._scale = np.array(index["scale"], dtype=np.float32)
        self._file = folder / "samples.i16"
        self._samples: np.ndarray | None = None
        self.seconds = (self._ends - self._begins) / SAMPLE_RATE
        self.bad = [*source.bad, *((name, reason) for name, reason in index["bad"])]
        self.fingerprint, self.class_names, self.shards = source.fingerprint, source.class_names, source.shards

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

    def _label(self, i: int) -> int:
        return self._source.label(i)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_samples": None}  # each worker maps the file itself


def _write(source: Source, folder: Path) -> None:
    """Samples first, the index last and by a rename: without an index there is no cache.

    Raises:
        ConfigError: no room or no permission.
    """

    def one(i: int) -> np.ndarray | str:
        try:
            return decode(source.read(i))
        except AudioError as error:
            return str(error)

    kept, samples, scale, bad = [], [], [], []
    partial = folder / f"samples.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            for first in range(0, len(source), _CHUNK):
                numbers = range(first, min(first + _CHUNK, len(source)))
                for i, waveform in zip(numbers, pool.map(one, numbers), strict=True):
                    if isinstance(waveform, str):
                        bad.append((source.name(i), waveform))
                        continue
                    step = max(1.0, float(np.abs(waveform).max())) / 32767
                    np.round(waveform / step).astype(np.int16).tofile(file)
                    kept.append(i)
                    samples.append(len(waveform))
                    scale.append(step)
        os.replace(partial, folder / "samples.i16")
        index = folder / f"index.{os.getpid()}.partial"
        index.write_text(json.dumps({"kept": kept, "samples": samples, "scale": scale, "bad": bad}), encoding="utf-8")
        os.replace(index, folder / "index.json")
    except OSError as error:
        raise ConfigError(
            f"the decoded cache {folder} cannot be written ({error.strerror}); make room, "
            "set AUDIO_ENCODER_CACHE to another folder, or turn it off with data.cache_gigabytes=0"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
