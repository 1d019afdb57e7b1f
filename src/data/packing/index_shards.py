"""Write the indexes of shards that exist already."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from src.audio.decode import AudioError
from src.data.packing.parallel import in_parallel
from src.data.packing.shard_file import (
    MEASURES,
    SEGMENT,
    Packed,
    checksum,
    counted,
    index_of,
    index_table,
    measure,
    read_about,
    read_packed,
    write_index,
)
from src.data.sources.index import walk_tar
from src.data.sources.storage import file_stamp, open_filesystem
from src.errors import UserError


def index_shards(shards: Sequence[str], workers: int = 1, check: bool = False) -> Iterator[Packed]:
    """Write the index of each shard, in order; unreadable clips are marked in it.

    Args:
        shards: paths or URLs. workers: processes. check: decode every clip, not only its header.
    """
    return in_parallel(partial(_index_shard, check=check), shards, workers)


def _index_shard(shard: str, check: bool) -> Packed:
    """Index one shard; a shard that cannot be read is one entry of `skipped`."""
    try:
        filesystem, path = open_filesystem(shard)
        stamp, about = file_stamp(filesystem.info(path)), read_about(shard)
        if about is not None and about["stamp"] == stamp and about.get("sidecars"):
            return read_packed(shard, about)
        members = walk_tar(shard)
        rows: list[dict[str, Any]] = []
        skipped: list[tuple[str, str]] = []
        with fsspec.open(shard, "rb") as file:
            for member in members:
                file.seek(member.offset)
                data = file.read(member.size)
                row = {"name": member.name, "offset": member.offset, "size": member.size, **member.columns}
                try:
                    row |= measure(data, check)
                except AudioError as error:
                    skipped.append((f"{shard}/{member.name}", str(error)))
                    row |= {"seconds": math.nan, "sample_rate": 0, "channels": 0, "checksum": checksum(data)}
                rows.append(row)
        kept = dict.fromkeys([*_labels_of(shard, rows), *(name for member in members for name in member.columns)])
    except (OSError, UserError) as error:
        return Packed(0, 0.0, 0, [(shard, str(error))])
    table, about = index_table(rows, kept), {"stamp": stamp, "skipped": skipped, "sidecars": True}
    try:
        write_index(table, shard, about)
    except OSError as error:
        raise UserError(f"{index_of(shard)} cannot be written ({error.strerror or error})") from None
    return counted(table, about)


def _labels_of(shard: str, rows: list[dict[str, Any]]) -> list[str]:
    """Add to the rows what the index that is there has besides its measures, if it is of the same members. What the
    files beside the audio say stays.

    Returns:
        The names of these columns.
    """
    filesystem, path = open_filesystem(index_of(shard))
    if not filesystem.exists(path):
        return []
    with filesystem.open(path, "rb") as file:
        try:
            table = pq.read_table(file)
        except pa.ArrowInvalid:  # damaged: written anew
            return []
    columns = [name for name in table.column_names if name not in MEASURES]
    if not columns or not {"name", "offset", "size"} <= set(table.column_names):
        return []
    before = {(old["name"], old["offset"], old["size"]): old for old in table.to_pylist()}
    for row in rows:
        old = before.get((row["name"], row["offset"], row["size"]), {})
        row.update(
            {
                name: old[name] if name in SEGMENT else str(old[name])
                for name in columns
                if name not in row and old.get(name) is not None
            }
        )
    return columns
