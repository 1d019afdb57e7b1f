"""What is known about clips before they are decoded: headers, positions in tar shards. Scanned once and cached."""

import hashlib
import os
import tarfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.atomic import writing
from src.audio.decode import SUFFIXES, AudioError, Encoded, probe
from src.data.sources.storage import open_filesystem, retry, shard_stamp
from src.errors import UserError
from src.progress import progress_bar


class Headers(NamedTuple):
    """One entry a clip: seconds (NaN where unreadable), and the reason ("" where readable)."""

    seconds: np.ndarray
    reason: list[str]


def cache_root() -> Path:
    """`$AUDIO_ENCODER_CACHE`, or ~/.cache/audio-encoder."""
    return Path(os.environ.get("AUDIO_ENCODER_CACHE", Path.home() / ".cache" / "audio-encoder"))


def digest(keys: Sequence[str]) -> str:
    """32 hexadecimal digits that identify all keys; file names need not be UTF-8."""
    return hashlib.sha256("\n".join(keys).encode(errors="surrogateescape")).hexdigest()[:32]


def scan_headers(read: Callable[[int], Encoded], keys: Sequence[str], place: str) -> Headers:
    """Headers of clips 0 ... len(keys) - 1; keys that an earlier scan of the same place has seen are not read again.

    Args:
        read: the encoded clip of a number. keys: identify a clip's content (path, size and mtime, say).
    """
    file = cache_root() / "headers" / f"{digest([place])}.parquet"
    keys = [digest([key]) for key in keys]
    known: dict[str, tuple[float, str]] = {}
    if (table := _read_cached(file)) is not None:
        columns = table.to_pydict()
        known = dict(zip(columns["key"], zip(columns["seconds"], columns["reason"], strict=True), strict=True))

    def scan(number: int) -> tuple[float, str]:
        try:
            return probe(read(number)).seconds, ""
        except AudioError as error:
            return float("nan"), str(error)

    new = [number for number, key in enumerate(keys) if key not in known]
    with (
        ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool,
        progress_bar("reading headers", len(new), len(new) > 10_000) as advance,
    ):
        for number, header in zip(new, pool.map(scan, new), strict=True):
            known[keys[number]] = header
            advance()
    headers = Headers(np.array([known[key][0] for key in keys], dtype=float), [known[key][1] for key in keys])
    if new:
        found = {"key": pa.array(keys), "seconds": headers.seconds, "reason": pa.array(headers.reason, pa.string())}
        _write_cached(pa.table(found), file)
    return headers


def tar_members(shard: str) -> pa.Table:
    """Audio members of a tar: name, offset, size (bytes), in the order of the file.

    From `<shard>.index.parquet` beside it if there is one, else from the cache, else by walking the tar's headers. An
    index that comes with the shard may say seconds too (NaN: unreadable); the clips' own headers are then not read.

    Raises:
        UserError: not a tar, not an index. OSError: no such shard, no access, no answer.
    """
    filesystem, path = open_filesystem(shard)
    if retry(lambda: filesystem.exists(f"{path}.index.parquet"), "://" in shard):
        return retry(lambda: _shipped_index(f"{shard}.index.parquet"), "://" in shard)
    cached = cache_root() / "shards" / f"{digest([shard_stamp(shard)])}.parquet"
    if (table := _read_cached(cached)) is not None:
        return table
    members = retry(lambda: walk_tar(shard), "://" in shard)
    table = pa.table(
        {
            "name": pa.array([m.name for m in members], pa.string()),
            "offset": pa.array([m.offset_data for m in members], pa.int64()),
            "size": pa.array([m.size for m in members], pa.int64()),
        }
    )
    _write_cached(table, cached)
    return table


def walk_tar(shard: str) -> list[tarfile.TarInfo]:
    """Complete audio members; in a truncated tar those before the cut, with a warning.

    Raises:
        UserError: not a tar. OSError: no such shard, no access.
    """
    try:
        return _walk(shard)
    except tarfile.TarError as error:
        raise UserError(f"{error}; a shard has to be a tar that is not compressed") from None


def _walk(shard: str) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    filesystem, path = open_filesystem(shard)
    size = filesystem.size(path)
    with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            for member in tar:
                if (
                    member.isfile()
                    and member.name.lower().endswith(SUFFIXES)
                    and member.offset_data + member.size <= size
                ):
                    members.append(member)
        except tarfile.ReadError as error:
            warnings.warn(
                f"the shard {shard} is damaged ({error}): {len(members)} clips before that are used", stacklevel=2
            )
    return members


def _shipped_index(file: str) -> pa.Table:
    try:
        with fsspec.open(file, "rb") as opened:
            table = pq.read_table(opened)
            return table.select(["name", "offset", "size", *({"seconds"} & set(table.column_names))])
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(
            f"{file} is not an index with name, offset and size ({error}); delete it or rebuild it"
        ) from None


def _read_cached(file: Path) -> pa.Table | None:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid):  # not there, or not for us
        return None


def _write_cached(table: pa.Table, file: Path) -> None:
    """Without permission or room, continue without the cache."""
    try:
        with writing(file) as partial:
            pq.write_table(table, partial)
    except OSError as error:
        warnings.warn(
            f"the index cache {file.parent} cannot be written ({error}); it is rebuilt each time", stacklevel=2
        )
