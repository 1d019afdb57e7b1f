"""Pack files into WebDataset-style tar shards with an index each (`src.data.packing.shard_file`).

Both files are written atomically, the tar last: a shard under its final name is complete.
"""

import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from src.audio.decode import SUFFIXES, AudioError, Encoded, decode
from src.data.packing.manifest import PackItem
from src.data.packing.parallel import in_parallel
from src.data.packing.prepare import KEEP, Preparation, Segment, prepared, segment_columns
from src.data.packing.shard_file import (
    MEASURES,
    SEGMENT,
    Packed,
    Rate,
    counted,
    index_table,
    measure,
    read_about,
    read_packed,
    write_index,
)
from src.data.sources.index import digest
from src.data.sources.storage import list_names, local_path, publishing, read_file
from src.errors import UserError
from src.share import ALL, Share

_BLOCK = 512  # bytes of a tar block
_FULL_SCALE = 1.0
_DECODED_AGAIN = 8  # of so many clips one, to measure what decoding costs after packing


class Shard(NamedTuple):
    """path: or URL. stamp: identifies the files it is made from, and what is done to them."""

    path: str
    clips: list[PackItem]
    stamp: str


def plan_shards(
    clips: Sequence[PackItem], folder: str, shard_bytes: float, preparation: Preparation = KEEP
) -> list[Shard]:
    """Consecutive clips, split into shards `folder/000000.tar` and so on, of up to `shard_bytes` (a larger clip gets
    its own shard). The split depends only on file names and sizes.

    Raises:
        UserError: a column of the clips is one that segments get.
    """
    if preparation.segment_seconds is not None:
        for clip in clips:
            if taken := next((name for name in clip.columns if name.lower() in SEGMENT), None):
                raise UserError(f"the manifest has a column {taken}, as segments get it; rename that column")
    groups: list[list[PackItem]] = []
    keys: list[list[str]] = []
    room = 0.0
    for clip in clips:
        size, changed = clip.size_and_time()
        needed = (4 if clip.columns else 2) * _BLOCK + -(-size // _BLOCK) * _BLOCK
        if not groups or needed > room:
            groups.append([])
            keys.append([] if preparation.audio == "keep" else [str(preparation)])
            room = shard_bytes
        room -= needed
        groups[-1].append(clip)
        keys[-1].append(f"{clip.name} {size} {changed} {sorted(clip.columns.items())}")
    return [
        Shard(f"{folder.rstrip('/')}/{number:06}.tar", group, digest(key))
        for number, (group, key) in enumerate(zip(groups, keys, strict=True))
    ]


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
    existing = {name for name in list_names(folder) if name.endswith(".tar")}
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
        with publishing(shard.path) as partial_file:  # gets its name after its index
            with open(partial_file, "wb") as file, _open_tar(file) as opened:
                tar = _Tar(file, opened, check, preparation)
                for clip in shard.clips:
                    tar.add(clip)
            named = [*(clip.columns for clip in shard.clips), *tar.rows]
            table = index_table(
                tar.rows, dict.fromkeys(name for each in named for name in each if name not in MEASURES)
            )
            about: dict[str, Any] = {"stamp": shard.stamp, "skipped": tar.skipped}
            if preparation.audio != "keep":
                about |= {"source_bytes": tar.source_bytes, "clipped": tar.clipped}
            write_index(table, shard.path, about)
    except OSError as error:
        raise UserError(
            f"{shard.path} cannot be written ({error.strerror or error}); free up space and run the same command again"
        ) from None
    return counted(table, about)._replace(before=tar.before, after=tar.after)


class _Tar:
    """A shard that is being written, and the rows of its index."""

    def __init__(self, file: IO[bytes], tar: tarfile.TarFile, check: bool, preparation: Preparation) -> None:
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[tuple[str, str]] = []
        self.clipped: list[tuple[str, float]] = []
        self.source_bytes = 0
        self.before, self.after = Rate(), Rate()
        self._file, self._tar, self._check, self._preparation = file, tar, check, preparation

    def add(self, clip: PackItem) -> None:
        """A clip that cannot be read to its end leaves nothing behind, and is added to `skipped`."""
        offset, num_rows = self._tar.offset, len(self.rows)
        try:
            if self._preparation.audio == "keep":
                data = _read(clip, whole=True)
                assert isinstance(data, bytes)
                self._add(clip.name, data, measure(data, self._check), clip.columns)
            else:
                self._add_prepared(clip)
        except AudioError as error:
            self.skipped.append((clip.path, str(error)))
            del self.rows[num_rows:]
            self._file.seek(offset)
            self._file.truncate()
            self._tar.offset = offset
        self._tar.members = []  # type: ignore[attr-defined]  # all of them are kept otherwise

    def _add_prepared(self, clip: PackItem) -> None:
        peak, before, after = 0.0, Rate(), Rate()
        for number, segment in enumerate(prepared(_read(clip, whole=False), self._preparation)):
            name = str(PurePosixPath(clip.name).with_suffix(self._preparation.suffix))
            columns: dict[str, Any] = clip.columns
            if self._preparation.segment_seconds is not None:
                name = str(PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem}-{number:06}"))
                columns = segment_columns(columns, clip.name, segment)
            before = before.plus(Rate(segment.seconds, segment.core_seconds))
            if len(self.rows) % _DECODED_AGAIN == 0:
                after = after.plus(_decoding(segment))
            peak = max(peak, segment.peak)
            self._add(name, segment.data, measure(segment.data, self._check), columns)
        self.before, self.after = self.before.plus(before), self.after.plus(after)
        self.source_bytes += clip.size_and_time()[0]
        if peak > _FULL_SCALE:
            self.clipped.append((clip.path, peak))

    def _add(self, name: str, data: bytes, measures: dict[str, Any], columns: dict[str, Any]) -> None:
        offset = self._add_member(name, data)
        self.rows.append({"name": name, "offset": offset, "size": len(data), **measures, **columns})
        if columns:
            self._add_member(str(PurePosixPath(name).with_suffix(".json")), json.dumps(columns).encode())

    def _add_member(self, name: str, data: bytes) -> int:
        """Add a file and return the offset of its data. Without owner and time, equal files give equal shards."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        return self._tar.offset - -(-len(data) // _BLOCK) * _BLOCK


def _open_tar(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)


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
