"""Audio in WebDataset-style tar shards, read by offset."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path

from src.audio.decode import SUFFIXES, AudioError
from src.data.sources.annotations import Annotation, in_order
from src.data.sources.index import read_member, tar_members
from src.data.sources.packed_labels import packed_annotations
from src.data.sources.shard_index import open_shard_index
from src.data.sources.source import Source
from src.data.sources.storage import expand_shards
from src.errors import UserError

SEGMENT_COLUMNS = ("parent", "start_seconds")  # of an index, by `python -m src.pack --segment-seconds`
_SKIP_SECONDS = 60.0  # a failed shard is skipped for this long
_MAX_RETRIED = 3  # shards; if more fail, the whole storage is down, and retrying each would stall the run


class ShardSource(Source):
    """Audio members of WebDataset-style tar files, read by offset; local, or anything fsspec opens.

    A shard that fails during training is skipped for a minute: meanwhile, its clips are unreadable.

    Attributes:
        missing: (shard, reason) of shards that could not be opened; they are also in `bad`.
    """

    def __init__(self, path: str) -> None:
        self._table = open_shard_index(expand_shards(path))
        if not len(self._table) and not self._table.bad:
            raise UserError(f"the shards {path} hold no audio files ({', '.join(SUFFIXES)})")
        self.shards, self.missing = len(self._table.shards), self._table.missing
        self.fingerprint = self._table.fingerprint
        self._kept = range(len(self._table))
        self.seconds = self._table.seconds
        bad = self._table.bad
        self.bad = [*self.missing, *((f"{Path(shard).name}/{name}", reason) for shard, name, reason in bad)]
        self.bad_paths = [*self.missing, *((f"{shard}/{name}", reason) for shard, name, reason in bad)]
        self.sizes = self._table.sizes
        self._skipped: dict[str, tuple[float, str]] = {}  # shard: until when, and why
        self._read_labels = False

    def _load_annotations(self) -> None:
        """From the indexes beside the shards, if they have labels."""
        if self._read_labels:
            return
        self._read_labels = True
        found = dict(zip(self._table.shards, packed_annotations(self._table.shards), strict=True))
        if any(found.values()):
            clips = ((self._table.shard(i), self._table.name(i)) for i in range(len(self._table)))
            annotations: list[Annotation | None] = [found[shard].get(name) for shard, name in clips]
            self._annotate(in_order(label for each in annotations if each for label in each.labels), annotations)

    def _read(self, i: int) -> bytes:
        shard = self._table.shard(i)
        until, reason = self._skipped.get(shard, (0.0, ""))
        if time.monotonic() >= until:
            try:
                patient = len(self._skipped) < _MAX_RETRIED
                return read_member(shard, self._table.name(i), *self._table.place(i), patient)
            except OSError as error:
                reason = f"the shard {shard} cannot be read ({error})"
                self._skipped[shard] = time.monotonic() + _SKIP_SECONDS, reason
        raise AudioError(reason)

    def _name(self, i: int) -> str:
        return f"{Path(self._table.shard(i)).name}/{self._table.name(i)}"

    def _path(self, i: int) -> str:
        return f"{self._table.shard(i)}/{self._table.name(i)}"

    @property
    def num_listed(self) -> int:
        return len(self._table)

    def part(self, begin: int, end: int) -> "ShardSource":
        part = copy.copy(self)
        part._kept, part.seconds = range(begin, end), self._table.seconds[begin:end]
        if begin:  # what is in the index as unreadable has no place among the others
            part.bad, part.bad_paths = [], []
        return part

    @cached_property
    def has_segments(self) -> bool:
        with ThreadPoolExecutor(16) as pool:  # remote shards answer slowly
            return any(pool.map(_has_segments, self._table.shards))

    def segment(self, i: int) -> tuple[str, float] | None:
        place = int(self._kept[i])
        return _segments(self._table.shard(place)).get(self._table.name(place))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "seconds": None, "sizes": None}  # a memory map would be pickled as a copy

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.seconds, self.sizes = self._table.seconds, self._table.sizes


def _has_segments(shard: str) -> bool:
    return set(SEGMENT_COLUMNS) <= set(tar_members(shard, SEGMENT_COLUMNS).column_names)


@lru_cache(maxsize=4)
def _segments(shard: str) -> dict[str, tuple[str, float]]:
    """By name, those that have a parent."""
    table = tar_members(shard, SEGMENT_COLUMNS)
    if not set(SEGMENT_COLUMNS) <= set(table.column_names):
        return {}
    rows = zip(*(table.column(name).to_pylist() for name in ("name", *SEGMENT_COLUMNS)), strict=True)
    return {name: (parent, float(start)) for name, parent, start in rows if parent is not None}
