"""Write a parquet file of a Hugging Face dataset: a row per clip, its encoded audio in the column `audio`.

The other columns are those of the index beside a tar. `datasets` reads the features from the metadata of the file.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from src.audio.decode import AudioError
from src.data.packing.shard_file import ABOUT, MEASURES, SEGMENT, Packed, counted, index_table

_AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # how `datasets.Audio` is stored
_MEASURES = {name: kind for name, kind in MEASURES.items() if name != "offset"}
# Of audio in a row group, or one clip: what is read for a clip. In 166 MB of FLAC segments, one clip takes 20 ms, and a
# stream gives 1,770 clips/s; with groups of 1 MB 13 ms and 1,440, of 64 MB 630 ms and 1,130, in one 3.9 s and 1,080.
_GROUP_BYTES = 8_000_000
_MOST_BYTES = 2**31 - 2**16  # of a value
_SPOOLED_BYTES = 32_000_000  # of a clip in memory; longer ones wait on disk until they are whole


class ParquetShard:
    """As `TarShard`. Memory holds a row group, not the shard; of a clip in segments, `_SPOOLED_BYTES` at most."""

    def __init__(self, file: Path, shard: str, columns: Iterable[str]) -> None:
        self._schema = dataset_schema(columns)
        self._rows: list[dict[str, Any]] = []  # all that are kept
        self._clip: list[dict[str, Any]] = []  # those whose bytes are in the spool
        self._group: list[bytes] = []  # the audio of the last rows, not yet written
        self._group_bytes = 0
        plain = [name for name in self._schema.names if name != "audio"]
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES, dir=str(file.parent))  # noqa: SIM115
        self._writer = pq.ParquetWriter(
            file, self._schema, compression="none", use_dictionary=plain, write_statistics=plain
        )

    def add(self, name: str, data: bytes, measures: dict[str, Any], columns: dict[str, Any]) -> None:
        """As `TarShard.add`. Raises AudioError: more bytes than a row can hold."""
        if len(data) > _MOST_BYTES:
            raise AudioError(f"{len(data):,} bytes; a row holds up to 2 GB: cut it with --audio and --segment-seconds")
        self._spool.write(data)
        self._clip.append({"name": name, "size": len(data), **measures, **columns})

    def keep(self) -> None:
        self._spool.seek(0)
        for row in self._clip:
            if self._group and self._group_bytes + row["size"] > _GROUP_BYTES:
                self._write_group()
            self._rows.append(row)
            self._group.append(self._spool.read(row["size"]))
            self._group_bytes += row["size"]
        self.drop()

    def drop(self) -> None:
        self._clip = []
        self._spool.seek(0)
        self._spool.truncate()

    def finish(self, about: dict[str, Any]) -> Packed:
        """As `TarShard.finish`."""
        if self._group:
            self._write_group()
        self._writer.add_key_value_metadata({ABOUT: json.dumps(about)})
        self.close()
        return counted(index_table(self._rows, ()), about)

    def close(self) -> None:
        self._writer.close()
        self._spool.close()

    def _write_group(self) -> None:
        rows = self._rows[-len(self._group) :]
        audio = [{"bytes": data, "path": row["name"]} for row, data in zip(rows, self._group, strict=True)]
        values = [audio, *([row.get(name) for row in rows] for name in self._schema.names[1:])]
        arrays = [pa.array(each, kind) for each, kind in zip(values, self._schema.types, strict=True)]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._group, self._group_bytes = [], 0


def dataset_schema(columns: Iterable[str]) -> pa.Schema:
    """That of `datasets.Features` with these columns besides `audio` and the measures, text but where a segment starts.

    The library itself takes seconds to import, in each process.
    """
    types = {"audio": _AUDIO, **_MEASURES, **{name: SEGMENT.get(name, pa.string()) for name in columns}}
    features: dict[str, dict[str, str]] = {"audio": {"_type": "Audio"}}
    for name, kind in list(types.items())[1:]:
        features[name] = {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}
    return pa.schema(types, {"huggingface": json.dumps({"info": {"features": features}})})
