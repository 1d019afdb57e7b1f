"""What is known of clips before decoding: headers, and offsets in tar shards. Scanned once, then cached."""

import contextlib
import hashlib
import os
import shutil
import tarfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from src.atomic import writing
from src.audio.decode import SUFFIXES, AudioError, Encoded, probe
from src.data.sources.sidecars import is_sidecar, read_sidecar, sidecar_key
from src.data.sources.storage import open_filesystem, read_range, retry, shard_stamp
from src.data.sources.walk import is_hidden_member
from src.errors import UserError
from src.progress import progress_bar
from src.share import cores

_VERSION = "v2"  # of what the cache holds; v1: lengths of MP3 by guess, quiet clips rounded to silence
_UNUSED_DAYS = 30
_BLOCK = 512  # bytes of a tar block; the header of a member is one
_LONGEST_NAME = 100  # bytes in a header


class Member(NamedTuple):
    """An audio member of a tar. offset, size: of its data, in bytes. columns: from the files beside it."""

    name: str
    offset: int
    size: int
    columns: dict[str, str]


class Headers(NamedTuple):
    """One entry per clip: seconds (NaN if unreadable), and the reason ("" if readable)."""

    seconds: np.ndarray
    reason: list[str]


def cache_root() -> Path:
    """`$AUDIO_ENCODER_CACHE`, or ~/.cache/audio-encoder; in it, a folder for this version of the contents.

    Raises:
        UserError: the variable is not set, and there is no home folder.
    """
    root = os.environ.get("AUDIO_ENCODER_CACHE")
    try:
        return Path(root or Path.home() / ".cache" / "audio-encoder") / _VERSION
    except RuntimeError:
        raise UserError("there is no home folder; set AUDIO_ENCODER_CACHE to a folder for the cache") from None


def mark_used(folder: Path) -> None:
    """Note that a folder of the cache is used now."""
    with contextlib.suppress(OSError):  # someone else's cache
        os.utime(folder)


def remove_unused(parent: Path) -> None:
    """Remove folders that were not used for a month, and unfinished ones of processes that were killed."""
    oldest = time.time() - _UNUSED_DAYS * 86400
    with contextlib.suppress(OSError):  # another process removes the same
        for folder in parent.iterdir():
            if folder.is_dir() and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def digest(keys: Sequence[str]) -> str:
    """Hash of all keys, 32 hexadecimal digits; file names need not be UTF-8."""
    return hashlib.sha256("\n".join(keys).encode(errors="surrogateescape")).hexdigest()[:32]


def scan_headers(read: Callable[[int], Encoded], keys: Sequence[str], location: str) -> Headers:
    """Headers of clips 0 ... len(keys) - 1. Keys known from an earlier scan of the same location are not read again.

    Args:
        read: returns the encoded clip at an index. keys: identify a clip's content (say, path, size and mtime).
        location: of the clips; each location has its own cache file.
    """
    file = cache_root() / "headers" / f"{digest([location])}.parquet"
    keys = [digest([key]) for key in keys]
    known: dict[str, tuple[float, str]] = {}
    if (table := _read_cached(file)) is not None:
        cached = table.to_pydict()
        known = dict(zip(cached["key"], zip(cached["seconds"], cached["reason"], strict=True), strict=True))

    new = [i for i, key in enumerate(keys) if key not in known]
    with (
        ThreadPoolExecutor(max(4, cores())) as pool,
        progress_bar("reading headers", len(new), len(new) > 10_000) as advance,
    ):
        for i, header in zip(new, pool.map(partial(read_header, read), new), strict=True):
            known[keys[i]] = header
            advance()
    headers = Headers(np.array([known[key][0] for key in keys], dtype=float), [known[key][1] for key in keys])
    if new:
        columns = {"key": pa.array(keys), "seconds": headers.seconds, "reason": pa.array(headers.reason, pa.string())}
        _write_cached(pa.table(columns), file)
    return headers


def read_header(read: Callable[[int], Encoded], i: int) -> tuple[float, str]:
    """The seconds of a clip and "", or NaN and why it is unreadable."""
    try:
        return probe(read(i)).seconds, ""
    except AudioError as error:
        return float("nan"), str(error)


def tar_members(shard: str, columns: Sequence[str] = ()) -> pa.Table:
    """Audio members of a tar, in file order: name, offset, size (bytes).

    Read from `<shard>.index.parquet` if it exists and fits the shard, else from the cache, else from the tar headers.
    An index next to the shard may also have seconds (NaN: unreadable); the headers of the clips are then not read.
    Hidden files and those that a Mac adds are left out.

    Args:
        columns: others that are wanted too, in lower case: those of an index next to the shard, or those that the files
            beside the audio have in the tar (`src.data.sources.sidecars`). What nothing has is not in the table.

    Raises:
        UserError: not a tar, not an index. OSError: no such shard, no access, no answer.
    """
    filesystem, path = open_filesystem(shard)
    if retry(lambda: filesystem.exists(f"{path}.index.parquet"), "://" in shard):
        table = retry(lambda: _shipped_index(f"{shard}.index.parquet", columns), "://" in shard)
        if _fits(table, shard):
            return table
        warnings.warn(
            f"{shard}.index.parquet is the index of another tar and is ignored; run python -m src.pack --index {shard}",
            stacklevel=2,
        )
    cached = cache_root() / "shards" / f"{digest([shard_stamp(shard), 'sidecars'])}.parquet"
    table = _read_cached(cached)
    if table is None:
        members = retry(lambda: walk_tar(shard), "://" in shard)
        known = dict.fromkeys(column for member in members for column in member.columns)
        table = pa.table(
            {
                "name": pa.array([m.name for m in members], pa.string()),
                "offset": pa.array([m.offset for m in members], pa.int64()),
                "size": pa.array([m.size for m in members], pa.int64()),
                **{name: pa.array([m.columns.get(name) for m in members], pa.string()) for name in known},
            }
        )
        _write_cached(table, cached)
    return _selected(table, columns)


def read_member(shard: str, name: str, offset: int, size: int, patient: bool = True) -> bytes:
    """The data of a member, if it is the one at that place. `patient`: as in `read_range`.

    Raises:
        AudioError: another member is there. OSError: as `read_range`.
    """
    before = _header_bytes(name, offset)
    data = read_range(shard, offset - before, before + size, patient)
    if not _is_header_of(data[:before], name, size):
        raise AudioError(f"another file is at its place: the index of {shard} does not fit it")
    return data[before:]


def _header_bytes(name: str, offset: int) -> int:
    """How many bytes before the data tell a member's name: its header; before it, blocks with a long name."""
    encoded = name.encode(errors="surrogateescape")
    blocks = 1 if len(encoded) <= _LONGEST_NAME and name.isascii() else 3 + len(encoded) // _BLOCK
    return min(blocks * _BLOCK, offset)


def _is_header_of(before: bytes, name: str, size: int) -> bool:
    header, padded = before[-_BLOCK:], name.encode(errors="surrogateescape").ljust(_LONGEST_NAME, b"\0")
    if header[:_LONGEST_NAME] == padded and header[124:135] == b"%011o" % size and header[345:346] == b"\0":
        return True  # as most tars are written; parsing takes ten times as long
    try:
        member = tarfile.TarInfo.frombuf(before[-_BLOCK:], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return member.size == size and (member.name == name or name.encode(errors="surrogateescape") in before[:-_BLOCK])


def _fits(table: pa.Table, shard: str) -> bool:
    """Are the first and the last member of the index at their places in the shard?"""
    for row in (0, table.num_rows - 1) if table.num_rows else ():
        name, offset, size = (table.column(column)[row].as_py() for column in ("name", "offset", "size"))
        before = _header_bytes(name, offset)
        if not _is_header_of(read_range(shard, offset - before, before), name, size):
            return False
    return True


def walk_tar(shard: str) -> list[Member]:
    """Complete audio members, with what the files beside them say. Of a truncated tar, those before the cut, with a
    warning.

    Raises:
        UserError: not a tar. OSError: no such shard, no access.
    """
    try:
        return _walk(shard)
    except tarfile.TarError as error:
        raise UserError(f"{error}; a shard must be an uncompressed tar") from None


def _walk(shard: str) -> list[Member]:
    members: list[Member] = []
    columns: dict[str, dict[str, str]] = {}  # by key
    remarks: list[str | None] = []
    filesystem, path = open_filesystem(shard)
    size = filesystem.size(path)
    with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            for member in tar:
                complete = member.isfile() and member.offset_data + member.size <= size
                if not complete or is_hidden_member(member.name):
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    members.append(Member(member.name, member.offset_data, member.size, {}))
                elif is_sidecar(member.name, member.size) and (opened := tar.extractfile(member)):
                    of_key = columns.setdefault(sidecar_key(member.name), {})
                    remarks.append(read_sidecar(member.name, opened.read(), of_key))
        except tarfile.ReadError as error:
            warnings.warn(
                f"the shard {shard} is damaged ({error}); using the {len(members)} clips before the damage",
                stacklevel=2,
            )
    if said := [remark for remark in remarks if remark]:
        warnings.warn(f"labels in {shard}: {said[0]} (and {len(said) - 1} others)", stacklevel=2)
    return [member._replace(columns=columns.get(sidecar_key(member.name), {})) for member in members]


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The measures, and the columns that are wanted, called so in lower case."""
    known = {name.lower(): name for name in table.column_names}
    wanted = {name: known[name] for name in columns if name in known}
    measures = [name for name in ("name", "offset", "size", "seconds") if name in table.column_names]
    return table.select([*measures, *wanted.values()]).rename_columns([*measures, *wanted])


def _shipped_index(file: str, columns: Sequence[str]) -> pa.Table:
    try:
        with fsspec.open(file, "rb") as opened:
            table = pq.read_table(opened)
            hidden = pa.array([is_hidden_member(name) for name in table.column("name").to_pylist()], pa.bool_())
            table = table.filter(pc.invert(hidden))
            return _selected(table.select([*dict.fromkeys(["name", "offset", "size", *table.column_names])]), columns)
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{file} is not an index with name, offset and size ({error}); delete or rebuild it") from None


def _read_cached(file: Path) -> pa.Table | None:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid):  # missing or invalid
        return None


def _write_cached(table: pa.Table, file: Path) -> None:
    """Without permission or disk space, warn and continue without the cache."""
    try:
        with writing(file) as partial:
            pq.write_table(table, partial)
    except OSError as error:
        warnings.warn(
            f"the index cache {file.parent} cannot be written ({error}); it is rebuilt each time", stacklevel=2
        )
