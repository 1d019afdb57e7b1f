"""Pack files into WebDataset-style tar shards with an index each, or index existing shards.

The index `<shard>.index.parquet` has one row per clip: name, offset and size (bytes), seconds (NaN: unreadable),
sample_rate (Hz), channels, checksum (MD5 of the bytes), and the labels. Both files are written atomically, the tar
last: a shard under its final name is complete.
"""

import hashlib
import io
import json
import math
import multiprocessing
import signal
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from src.atomic import writing
from src.audio.decode import SUFFIXES, AudioError, Encoded, decode_blocks, probe
from src.data.packing.manifest import PackItem
from src.data.sources.index import digest, walk_tar
from src.data.sources.storage import file_stamp, open_filesystem
from src.errors import UserError

_ABOUT = b"packed"  # metadata key of an index: what the shard was made from, and what was skipped
_BLOCK = 512  # bytes of a tar block
_MEASURES = {
    "name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "seconds": pa.float64(), "sample_rate": pa.int32(),
    "channels": pa.int32(), "checksum": pa.string(),
}  # fmt: skip


class Packed(NamedTuple):
    """Result of one shard. bytes: of audio. skipped: (path, reason)."""

    samples: int
    seconds: float
    bytes: int
    skipped: list[tuple[str, str]]


class _Shard(NamedTuple):
    path: Path
    clips: list[PackItem]
    stamp: str  # identifies the files it is made from


def pack(
    clips: Sequence[PackItem], folder: Path, shard_bytes: float, workers: int = 1, check: bool = False
) -> tuple[int, Iterator[Packed]]:
    """Write `folder/000000.tar` and so on; finished shards are left untouched.

    The assignment of clips to shards depends only on file names and sizes. Files are stored unchanged.

    Args:
        shard_bytes: maximum size of a shard (a larger clip gets its own shard).
        workers: processes. check: decode every clip, not only its header, to find damage.

    Returns:
        The number of shards, and an iterator over their results, in order.

    Raises:
        UserError: the folder contains shards of other files; disk full, no permission.
    """
    shards = plan_shards(clips, folder, shard_bytes)
    existing = {path.name for path in folder.glob("*.tar")}
    if other := sorted(existing - {shard.path.name for shard in shards}):
        raise UserError(f"{folder} contains {other[0]}, not made from these inputs; choose another --out or delete it")
    for shard in shards:
        if shard.path.exists() and (_about(shard.path) or {}).get("stamp") != shard.stamp:
            raise UserError(
                f"{shard.path} was packed from other files, or with another --shard-megabytes; "
                "choose another --out or delete it"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be created ({error.strerror or error})") from None
    return len(shards), _in_parallel(partial(_pack_shard, check=check), shards, workers)


def index_shards(shards: Sequence[str], workers: int = 1, check: bool = False) -> tuple[int, Iterator[Packed]]:
    """Write the indexes of existing shards, returning as `pack`; unreadable clips are marked in the index.

    Args:
        shards: paths or URLs. workers, check: as `pack`.
    """
    return len(shards), _in_parallel(partial(_index_shard, check=check), shards, workers)


def plan_shards(clips: Sequence[PackItem], folder: Path, shard_bytes: float) -> list[_Shard]:
    """Consecutive clips, split into shards of up to `shard_bytes`."""
    groups: list[list[PackItem]] = []
    keys: list[list[str]] = []
    room = 0.0
    for clip in clips:
        try:
            stat = Path(clip.path).stat()
            size, changed = stat.st_size, stat.st_mtime_ns
        except OSError:  # skipped, with the reason, when its shard is written
            size, changed = 0, 0
        needed = (4 if clip.columns else 2) * _BLOCK + -(-size // _BLOCK) * _BLOCK
        if not groups or needed > room:
            groups.append([])
            keys.append([])
            room = shard_bytes
        room -= needed
        groups[-1].append(clip)
        keys[-1].append(f"{clip.name} {size} {changed} {sorted(clip.columns.items())}")
    return [
        _Shard(folder / f"{number:06}.tar", group, digest(key))
        for number, (group, key) in enumerate(zip(groups, keys, strict=True))
    ]


def _in_parallel(work: Callable[[Any], Packed], shards: Sequence[Any], workers: int) -> Iterator[Packed]:
    """Results in order. Ctrl-C ends after the shards in progress."""
    if workers <= 1 or len(shards) <= 1:
        yield from map(work, shards)
        return
    context = multiprocessing.get_context("spawn")  # a fork would not copy the progress bar's threads
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _ignore_interrupts)
    try:
        yield from pool.map(work, shards)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pack_shard(shard: _Shard, check: bool) -> Packed:
    if (about := _about(shard.path)) is not None:
        return _counted(pq.read_table(_index_of(str(shard.path))), about["skipped"])
    skipped: list[tuple[str, str]] = []
    try:
        with writing(shard.path) as partial_file:  # renamed after its index
            rows = _write_tar(shard.clips, partial_file, check, skipped)
            table = _table(rows, dict.fromkeys(column for clip in shard.clips for column in clip.columns))
            _write_index(table, str(shard.path), {"stamp": shard.stamp, "skipped": skipped})
    except OSError as error:
        raise UserError(
            f"{shard.path} cannot be written ({error.strerror or error}); free up space and run the same command again"
        ) from None
    return _counted(table, skipped)


def _write_tar(
    clips: list[PackItem], target: Path, check: bool, skipped: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Write the tar and return the rows of its index; unreadable clips are added to `skipped`."""
    rows: list[dict[str, Any]] = []
    with open(target, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for clip in clips:
            try:
                data, measures = _read_clip(clip, check)
            except AudioError as error:
                skipped.append((clip.path, str(error)))
                continue
            offset = _add(tar, clip.name, data)
            rows.append({"name": clip.name, "offset": offset, "size": len(data), **measures, **clip.columns})
            if clip.columns:
                _add(tar, str(PurePosixPath(clip.name).with_suffix(".json")), json.dumps(clip.columns).encode())
    return rows


def _read_clip(clip: PackItem, check: bool) -> tuple[bytes, dict[str, Any]]:
    """Raises AudioError: no such file, no access, no audio suffix, not readable as audio."""
    try:
        if Path(clip.path).is_dir():
            raise AudioError("a folder that cannot be read")
        if not clip.name.lower().endswith(SUFFIXES):
            raise AudioError("no audio suffix")
        data = Path(clip.path).read_bytes()
    except OSError as error:
        raise AudioError(f"not readable ({error.strerror or error})") from None
    return data, _measure(data, check)


def _measure(data: bytes, check: bool) -> dict[str, Any]:
    """Raises AudioError: as `probe`, and with `check` as `decode`."""
    header = probe(data)
    if check:
        for _ in decode_blocks(data):
            pass
    return {**header._asdict(), "checksum": _checksum(data)}


def _checksum(data: Encoded) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()  # type: ignore[arg-type]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member and return the offset of its data. Without owner and time, equal files give equal shards."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK


def _index_shard(shard: str, check: bool) -> Packed:
    """Index one shard; a shard that cannot be read is one entry of `skipped`."""
    try:
        filesystem, path = open_filesystem(shard)
        stamp, about = file_stamp(filesystem.info(path)), _about(shard)
        if about is not None and about["stamp"] == stamp and about.get("sidecars"):
            with fsspec.open(_index_of(shard), "rb") as file:
                return _counted(pq.read_table(file), about["skipped"])
        members = walk_tar(shard)
        rows: list[dict[str, Any]] = []
        skipped: list[tuple[str, str]] = []
        with fsspec.open(shard, "rb") as file:
            for member in members:
                file.seek(member.offset)
                data = file.read(member.size)
                row = {"name": member.name, "offset": member.offset, "size": member.size, **member.columns}
                try:
                    row |= _measure(data, check)
                except AudioError as error:
                    skipped.append((f"{shard}/{member.name}", str(error)))
                    row |= {"seconds": math.nan, "sample_rate": 0, "channels": 0, "checksum": _checksum(data)}
                rows.append(row)
        kept = dict.fromkeys([*_labels_of(shard, rows), *(name for member in members for name in member.columns)])
    except (OSError, UserError) as error:
        return Packed(0, 0.0, 0, [(shard, str(error))])
    table = _table(rows, kept)
    try:
        _write_index(table, shard, {"stamp": stamp, "skipped": skipped, "sidecars": True})
    except OSError as error:
        raise UserError(f"{_index_of(shard)} cannot be written ({error.strerror or error})") from None
    return _counted(table, skipped)


def _labels_of(shard: str, rows: list[dict[str, Any]]) -> list[str]:
    """Add to the rows what the index that is there has besides its measures, if it is of the same members. What the
    files beside the audio say stays.

    Returns:
        The names of these columns.
    """
    filesystem, path = open_filesystem(_index_of(shard))
    if not filesystem.exists(path):
        return []
    with filesystem.open(path, "rb") as file:
        try:
            table = pq.read_table(file)
        except pa.ArrowInvalid:  # damaged: written anew
            return []
    columns = [name for name in table.column_names if name not in _MEASURES]
    if not columns or not {"name", "offset", "size"} <= set(table.column_names):
        return []
    before = {(old["name"], old["offset"], old["size"]): old for old in table.to_pylist()}
    for row in rows:
        old = before.get((row["name"], row["offset"], row["size"]), {})
        row.update({name: str(old[name]) for name in columns if name not in row and old.get(name) is not None})
    return columns


def _counted(table: pa.Table, skipped: Iterable[Sequence[str]]) -> Packed:
    seconds = table.column("seconds").to_numpy()
    readable = seconds == seconds
    return Packed(
        int(readable.sum()), float(seconds[readable].sum()), int(table.column("size").to_numpy()[readable].sum()),
        [(path, reason) for path, reason in skipped],
    )  # fmt: skip


def _table(rows: list[dict[str, Any]], columns: Iterable[str]) -> pa.Table:
    types = _MEASURES | dict.fromkeys(columns, pa.string())
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})


def _index_of(shard: str) -> str:
    return f"{shard}.index.parquet"


def _write_index(table: pa.Table, shard: str, about: dict[str, Any]) -> None:
    """Local indexes are written atomically; object stores show a file only once it is complete."""
    table = table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
    file = _index_of(shard)
    if "://" in shard:
        with fsspec.open(file, "wb") as opened:
            pq.write_table(table, opened)
        return
    with writing(Path(file)) as partial_file:
        pq.write_table(table, partial_file)


def _about(shard: str | Path) -> dict[str, Any] | None:
    """The `about` of `_write_index`; None if there is no shard, no index, or one from another tool."""
    filesystem, path = open_filesystem(_index_of(str(shard)))
    try:
        with filesystem.open(path, "rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        has_tar = filesystem.exists(path.removesuffix(".index.parquet"))
    except (OSError, pa.ArrowInvalid):
        return None
    return json.loads(metadata[_ABOUT]) if _ABOUT in metadata and has_tar else None
