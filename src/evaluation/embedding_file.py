"""A table of embeddings on disk, written in parts; an interrupted run can be resumed at any time.

Until it is finished, it is a folder `<file>.partial` of parts, each written atomically; `finish` joins them into one
parquet or npz file. Columns: path, seconds, label (several joined by `;`, null if none), time (center of the token in
seconds, at frame level only), embedding (D values). The metadata of a parquet file has the settings of the embeddings
under `embedding`, as JSON.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.errors import UserError

METADATA_KEY = b"embedding"
_REPEATED = ["path", "label"]  # dictionary-encoded columns


class EmbeddingFile:
    """Args: target: a new .parquet or .npz file. settings: how the embeddings are made; plain values.

    Raises:
        UserError: `target` exists or has another suffix; an unfinished file of that name has other settings.
    """

    def __init__(self, target: Path, settings: dict[str, Any]) -> None:
        if target.suffix not in (".parquet", ".npz"):
            raise UserError(f"--out {target}: it must end in .parquet or .npz")
        if target.exists():
            raise UserError(f"{target} already exists; choose another name or remove it")
        self.target, self.settings = target, settings
        self._folder = target.with_name(target.name + ".partial")
        settings_file = self._folder / "settings.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if settings_file.exists() and json.loads(settings_file.read_text(encoding="utf-8")) != settings:
                raise UserError(
                    f"{self._folder} was started with other settings ({settings_file}); remove it or change --out"
                )
            settings_file.write_text(json.dumps(settings), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error.strerror}") from None
        for leftover in self._folder.glob("*.tmp"):
            leftover.unlink()
        self.done = {path for part in self._parts() for path in set(_column(part, "path"))}

    def write_part(self, tables: Iterable[pa.Table]) -> None:
        """Write one or more tables of rows as one part; each table is written as soon as it is ready."""
        part = self._folder / f"{len(self._parts()):08d}.parquet"
        partial = part.with_suffix(".tmp")
        writer: pq.ParquetWriter | None = None
        written: set[str] = set()
        try:
            for table in tables:
                if writer is None:
                    writer = pq.ParquetWriter(partial, table.schema, use_dictionary=_REPEATED)
                writer.write_table(table)
                written.update(table.column("path").to_pylist())
        except OSError as error:
            raise UserError(f"cannot write {partial}: {error.strerror or error}; finished parts are kept") from None
        finally:
            if writer is not None:
                writer.close()
        if writer is not None:
            os.replace(partial, part)
            self.done |= written

    def finish(self) -> int:
        """Join the parts and remove them; returns the number of rows.

        Raises:
            UserError: no rows; disk full.
        """
        parts = self._parts()
        if not parts:
            shutil.rmtree(self._folder)
            raise UserError("no clip could be embedded; nothing was written")
        num_rows = sum(pq.read_metadata(part).num_rows for part in parts)
        partial = self._folder / f"joined{self.target.suffix}.tmp"
        try:
            if self.target.suffix == ".npz":
                _write_npz(partial, parts, num_rows)
            else:
                self._write_parquet(partial, parts)
            os.replace(partial, self.target)
        except OSError as error:
            raise UserError(f"cannot write {self.target}: {error.strerror or error}; run again to finish") from None
        shutil.rmtree(self._folder)
        return num_rows

    def _write_parquet(self, file: Path, parts: list[Path]) -> None:
        schema = pq.read_schema(parts[0]).with_metadata({METADATA_KEY: json.dumps(self.settings)})
        with pq.ParquetWriter(file, schema, use_dictionary=_REPEATED) as writer:
            for batch in _batches(parts):
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))


def rows(
    paths: list[str],
    seconds: list[float],
    labels: list[str | None],
    embedding: np.ndarray,
    times: np.ndarray | None = None,
) -> pa.Table:
    """A table of n rows. embedding: (n, D). times: (n,), in seconds."""
    columns = {
        "path": pa.array(paths, pa.string()),
        "seconds": pa.array(seconds, pa.float32()),
        "label": pa.array(labels, pa.string()),
    }
    if times is not None:
        columns["time"] = pa.array(times, pa.float32())
    flat = pa.array(np.ascontiguousarray(embedding, dtype=np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embedding.shape[1])
    return pa.table(columns)


def _batches(parts: list[Path]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield from pq.ParquetFile(part, pre_buffer=False).iter_batches(8192)  # pre_buffer would load the whole file


def _column(part: Path, name: str) -> list[Any]:
    return pq.read_table(part, columns=[name]).column(name).to_pylist()


def _write_npz(file: Path, parts: list[Path], num_rows: int) -> None:
    """Write all columns to an .npz; embeddings are streamed, as they may not fit into memory."""
    schema = pq.read_schema(parts[0])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in schema.names:
            if name == "embedding":
                continue
            values = [value for part in parts for value in _column(part, name)]
            kind = np.str_ if pa.types.is_string(schema.field(name).type) else np.float32
            array = np.array(["" if value is None else value for value in values], dtype=kind)
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        width = schema.field("embedding").type.list_size
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_1_0(member, header)
            for batch in _batches(parts):
                member.write(batch.column("embedding").flatten().to_numpy(zero_copy_only=False).tobytes())
