"""Pack files into tar shards with an index each, or into the parquet files of a Hugging Face dataset.

All files are written atomically, a tar after its index: a shard under its final name is complete.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from src.audio.decode import SUFFIXES, AudioError, Encoded, decode
from src.data.packing.manifest import PackItem
from src.data.packing.parallel import in_parallel
from src.data.packing.parquet_shard import ParquetShard
from src.data.packing.plan import Shard
from src.data.packing.prepare import KEEP, Preparation, Segment, prepared, segment_columns
from src.data.packing.shard_file import Packed, Rate, measure, read_about, read_packed
from src.data.packing.tar_shard import TarShard
from src.data.sources.storage import list_names, local_path, publishing, read_file
from src.errors import UserError
from src.share import ALL, Share

_FULL_SCALE = 1.0
_DECODED_AGAIN = 8  # of so many clips one, to measure what decoding costs after packing
_SHARDS: dict[str, type[TarShard | ParquetShard]] = {".tar": TarShard, ".parquet": ParquetShard}
_DATASET_FILE = re.compile(r"(train|validation|test)-\d{5,}-of-\d{5,}\.parquet")


def pack(
    shards: Sequence[Shard],
    folder: str,
    workers: int = 1,
    check: bool = False,
    preparation: Preparation = KEEP,
    share: Share = ALL,
) -> Iterator[Packed]:
    """Write the shards of this process; finished ones are left untouched.

    Args:
        shards: all of them, as `plan_shards` splits the clips. workers: processes. check: decode every clip, not only
            its header, to find damage. preparation: what is stored. share: which of the shards are written.

    Returns:
        An iterator over the results, in order.

    Raises:
        UserError: the folder contains shards of other files; disk full, no permission.
    """
    existing = {name for name in list_names(folder) if name.endswith(".tar") or _DATASET_FILE.fullmatch(name)}
    if other := sorted(existing - {PurePosixPath(shard.path).name for shard in shards}):
        raise UserError(f"{folder} contains {other[0]}, not made from these inputs; choose another --out or delete it")
    mine = share.of(shards)
    for shard in mine:
        there = PurePosixPath(shard.path).name in existing
        if there and (read_about(shard.path) or {}).get("stamp") != shard.stamp:
            raise UserError(
                f"{shard.path} was packed from other files or with other options; choose another --out or delete it"
            )
    if (local := local_path(folder)) is not None:
        try:
            local.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {folder} cannot be created ({error.strerror or error})") from None
    return in_parallel(partial(_pack_shard, check=check, preparation=preparation), mine, workers)


def read_finished(shards: Sequence[Shard]) -> list[Packed]:
    """The results of the shards that are finished, by this process or another."""
    with ThreadPoolExecutor(16) as pool:
        return [each for each in pool.map(_finished, shards) if each is not None]


def _finished(shard: Shard) -> Packed | None:
    about = read_about(shard.path)
    return read_packed(shard.path, about) if about is not None and about["stamp"] == shard.stamp else None


def _pack_shard(shard: Shard, check: bool, preparation: Preparation) -> Packed:
    if (finished := _finished(shard)) is not None:
        return finished
    try:
        with publishing(shard.path) as partial_file:  # a tar gets its name after its index
            shard_file = _SHARDS[PurePosixPath(shard.path).suffix](partial_file, shard.path, shard.columns)
            with contextlib.closing(shard_file):
                filling = _Filling(shard_file, check, preparation)
                for clip in shard.clips:
                    filling.add(clip)
                about: dict[str, Any] = {"stamp": shard.stamp, "skipped": filling.skipped}
                if preparation.audio != "keep":
                    about |= {"source_bytes": filling.source_bytes, "clipped": filling.clipped}
                packed = shard_file.finish(about)
    except OSError as error:
        raise UserError(
            f"{shard.path} cannot be written ({error.strerror or error}); free up space and run the same command again"
        ) from None
    return packed._replace(before=filling.before, after=filling.after)


class _Filling:
    """Puts clips into a shard, and notes what happened to them."""

    def __init__(self, shard: TarShard | ParquetShard, check: bool, preparation: Preparation) -> None:
        self.skipped: list[tuple[str, str]] = []
        self.clipped: list[tuple[str, float]] = []
        self.source_bytes = 0
        self.before, self.after = Rate(), Rate()
        self._shard, self._check, self._preparation, self._num_segments = shard, check, preparation, 0

    def add(self, clip: PackItem) -> None:
        """A clip that cannot be read to its end leaves nothing behind, and is added to `skipped`."""
        try:
            if self._preparation.audio == "keep":
                data = _read(clip, whole=True)
                assert isinstance(data, bytes)
                self._shard.add(clip.name, data, measure(data, self._check), clip.columns)
            else:
                self._add_prepared(clip)
        except AudioError as error:
            self.skipped.append((clip.path, str(error)))
            self._shard.drop()
        else:
            self._shard.keep()

    def _add_prepared(self, clip: PackItem) -> None:
        peak, before, after = 0.0, Rate(), Rate()
        for number, segment in enumerate(prepared(_read(clip, whole=False), self._preparation)):
            name = str(PurePosixPath(clip.name).with_suffix(self._preparation.suffix))
            columns: dict[str, Any] = clip.columns
            if self._preparation.segment_seconds is not None:
                name = str(PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem}-{number:06}"))
                columns = segment_columns(columns, clip.name, segment)
            before = before.plus(Rate(segment.seconds, segment.core_seconds))
            if self._num_segments % _DECODED_AGAIN == 0:
                after = after.plus(_decoding(segment))
            self._num_segments += 1
            peak = max(peak, segment.peak)
            self._shard.add(name, segment.data, measure(segment.data, self._check), columns)
        self.before, self.after = self.before.plus(before), self.after.plus(after)
        self.source_bytes += clip.size_and_time()[0]
        if peak > _FULL_SCALE:
            self.clipped.append((clip.path, peak))


def _decoding(segment: Segment) -> Rate:
    started = time.thread_time()
    decode(segment.data)
    return Rate(segment.seconds, time.thread_time() - started)


def _read(clip: PackItem, whole: bool) -> Encoded:
    """The bytes; or, if it need not be `whole`, the path of a local file, which is then read piece by piece.

    Raises:
        AudioError: no such file, no access, no audio suffix. UserError: storage that does not answer.
    """
    local = local_path(clip.path)
    try:
        if local is not None and local.is_dir():
            raise AudioError("a folder that cannot be read")
        if not clip.name.lower().endswith(SUFFIXES):
            raise AudioError("no audio suffix")
        if local is None:
            return read_file(clip.path)
        return local.read_bytes() if whole else local
    except OSError as error:
        if local is None and not isinstance(error, FileNotFoundError):
            raise UserError(f"{clip.path} cannot be read ({error}); run the same command again to resume") from None
        raise AudioError(f"not readable ({error.strerror or error})") from None
