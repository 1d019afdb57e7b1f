"""The index beside a shard, `<shard>.index.parquet`, as `src.pack` writes it.

One row per clip: name, offset and size (bytes), seconds (NaN: unreadable), sample_rate (Hz), channels, checksum (MD5 of
the bytes), the labels, and of a segment its parent and start_seconds.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from src.audio.decode import Encoded, decode_blocks, probe
from src.data.sources.storage import open_filesystem, publishing

ABOUT = b"packed"  # metadata key of an index: what the shard was made from, and what was skipped
MEASURES = {
    "name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "seconds": pa.float64(), "sample_rate": pa.int32(),
    "channels": pa.int32(), "checksum": pa.string(),
}  # fmt: skip
SEGMENT = {"parent": pa.string(), "start_seconds": pa.float64()}


class Rate(NamedTuple):
    """audio_seconds: decoded in core_seconds."""

    audio_seconds: float = 0.0
    core_seconds: float = 0.0

    def plus(self, other: "Rate") -> "Rate":
        return Rate(self.audio_seconds + other.audio_seconds, self.core_seconds + other.core_seconds)


class Packed(NamedTuple):
    """Result of one shard. bytes: of audio. skipped: (path, reason). source_bytes: of the files that it is made of.
    clipped: (path, peak) of those beyond full scale. before, after: decoding them and what was made of them, as far as
    this process did."""

    samples: int
    seconds: float
    bytes: int
    skipped: list[tuple[str, str]]
    source_bytes: int = 0
    clipped: Sequence[tuple[str, float]] = ()
    before: Rate = Rate()
    after: Rate = Rate()


def measure(data: bytes, check: bool) -> dict[str, Any]:
    """Header and checksum. Raises AudioError: as `probe`, and with `check` as `decode`."""
    header = probe(data)
    if check:
        for _ in decode_blocks(data):
            pass
    return {**header._asdict(), "checksum": checksum(data)}


def checksum(data: Encoded) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()  # type: ignore[arg-type]


def index_of(shard: str) -> str:
    """The file that has the rows of a shard: beside a tar, or a parquet file itself."""
    return shard if shard.endswith(".parquet") else f"{shard}.index.parquet"


def index_table(rows: list[dict[str, Any]], columns: Iterable[str]) -> pa.Table:
    """columns: besides the measures; text, except where a segment starts."""
    types = (
        MEASURES | dict.fromkeys(columns, pa.string()) | {name: SEGMENT[name] for name in columns if name in SEGMENT}
    )
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in types.items()})


def write_index(table: pa.Table, shard: str, about: dict[str, Any]) -> None:
    """Atomically. Raises OSError: no permission, disk full, no answer."""
    table = table.replace_schema_metadata({ABOUT: json.dumps(about).encode()})
    with publishing(index_of(shard)) as partial:
        pq.write_table(table, partial)


def read_about(shard: str) -> dict[str, Any] | None:
    """The `about` of `write_index`; None if there is no shard, no index, or one from another tool."""
    filesystem, path = open_filesystem(index_of(shard))
    try:
        with filesystem.open(path, "rb") as file:
            metadata = pq.read_metadata(file).metadata or {}
        exists = filesystem.exists(path.removesuffix(".index.parquet"))
    except (OSError, pa.ArrowInvalid):
        return None
    return json.loads(metadata[ABOUT]) if ABOUT in metadata and exists else None


def read_packed(shard: str, about: dict[str, Any]) -> Packed:
    """The result of a finished shard."""
    with fsspec.open(index_of(shard), "rb") as file:
        return counted(pq.read_table(file, columns=["seconds", "size"]), about)


def counted(table: pa.Table, about: dict[str, Any]) -> Packed:
    seconds = table.column("seconds").to_numpy()
    readable = seconds == seconds
    size = table.column("size").to_numpy()
    clipped = [(path, peak) for path, peak in about.get("clipped", [])]
    skipped = [(path, reason) for path, reason in about["skipped"]]
    num_bytes, source_bytes = int(size[readable].sum()), about.get("source_bytes", 0)
    return Packed(int(readable.sum()), float(seconds[readable].sum()), num_bytes, skipped, source_bytes, clipped)
