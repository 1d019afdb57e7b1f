"""What is known of clips before they are decoded: headers of files, members of tar shards. Scanned once, kept in a cache."""

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

from src.data.decode import SUFFIXES, AudioError, Encoded, probe


class Headers(NamedTuple):
    """One entry a clip: seconds (NaN where unreadable), and the reason ("" where readable)."""

    seconds: np.ndarray
    reason: list[str]


def cache_root() -> Path:
    """`$AUDIO_ENCODER_CACHE`, or ~/.cache/audio-encoder."""
    return Path(os.environ.get("AUDIO_ENCODER_CACHE", Path.home() / ".cache" / "audio-encoder"))


def scan_headers(read: Callable[[int], Encoded], keys: Sequence[str]) -> Headers:
    """Headers of clips 0 ... len(keys) - 1, those of an earlier scan from the cache.

    Args:
        read: the encoded clip of a number. keys: identify the content (path, size and mtime, say), one a clip.
    """
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    file = cache_root() / "headers" / f"{digest}.parquet"
    if file.exists():
        table = pq.read_table(file)
        return Headers(table.column("seconds").to_numpy(), table.column("reason").to_pylist())

    def scan(number: int) -> tuple[float, str]:
        try:
            return probe(read(number)).seconds, ""
        except AudioError as error:
            return float("nan"), str(error)

    with ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(scan, range(len(keys)), chunksize=64))
    headers = Headers(np.array([seconds for seconds, _ in found]), [reason for _, reason in found])
    write_atomically(pa.table({"seconds": headers.seconds, "reason": pa.array(headers.reason, pa.string())}), file)
    return headers


def tar_members(shard: str) -> pa.Table:
    """Audio members of a tar: name, offset, size (bytes), in the order of the file.

    From `<shard>.index.parquet` beside it if there is one, else from the cache, else by walking the tar's headers.
    """
    shipped = f"{shard}.index.parquet"
    filesystem, path = fsspec.core.url_to_fs(shard)
    if filesystem.exists(f"{path}.index.parquet"):
        with fsspec.open(shipped, "rb") as file:
            return pq.read_table(file)
    details = filesystem.info(path)
    stamp = (
        f"{shard} {details.get('size')} {details.get('mtime') or details.get('ETag') or details.get('LastModified')}"
    )
    cached = cache_root() / "shards" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.parquet"
    if cached.exists():
        return pq.read_table(cached)
    with fsspec.open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        members = [m for m in tar if m.isfile() and m.name.lower().endswith(SUFFIXES)]
    table = pa.table(
        {
            "name": pa.array([m.name for m in members], pa.string()),
            "offset": pa.array([m.offset_data for m in members], pa.int64()),
            "size": pa.array([m.size for m in members], pa.int64()),
        }
    )
    write_atomically(table, cached)
    return table


def write_atomically(table: pa.Table, file: Path) -> None:
    """Write a cache file beside its place and rename it; without permission or room, go on without the cache."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        os.replace(partial, file)
    except OSError as error:
        warnings.warn(
            f"the index cache {file.parent} cannot be written ({error}); it is made anew each time", stacklevel=2
        )
        partial.unlink(missing_ok=True)
