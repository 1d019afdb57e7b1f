"""A table of embeddings on disk, written in parts; an interrupted run can be resumed at any time, by one process.

Until it is finished, it is a folder `<file>.partial` of parts, each written atomically; `finish` joins them into one
parquet or npz file. Columns: path, seconds, label (several joined by `;`, null if none), of segments parent and
start_seconds, at frame level time (center of the token in seconds), embedding (D values). The metadata of a parquet
file has the settings of the embeddings under `embedding`, as JSON.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.atomic import FolderLock, writing
from src.errors import UserError

METADATA_KEY = b"embedding"
_REPEATED = ["path", "label", "parent"]  # dictionary-encoded columns


class EmbeddingFile:
    """A file that one process writes, until `finish` or `close`.

    Args:
        target: a new .parquet or .npz file.
        settings: how the embeddings are made; plain values, stored in the file.
        inputs: what is embedded; plain values that a resumed run must have again, stored too.

    Raises:
        UserError: `target` exists or has another suffix; an unfinished file of that name has other settings or inputs,
            or another process is writing it.
    """

    def __init__(self, target: Path, settings: dict[str, Any], inputs: dict[str, Any] | None = None) -> None:
        if target.suffix not in (".parquet", ".npz"):
            raise UserError(f"--out {target}: it must end in .parquet or .npz")
        self.target = target
        self.metadata = {METADATA_KEY: json.dumps({**settings, "inputs": inputs or {}})}
        self._folder = target.with_name(target.name + ".partial")
        if target.exists():
            raise UserError(f"{target} already exists; choose another name or remove it")
        try:
            self._lock = FolderLock(self._folder)
        except BlockingIOError:
            raise UserError(f"{target} is being written by another process; wait for it or change --out") from None
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error.strerror}") from None
        try:
            self._resume({**settings, **(inputs or {})})
            self.done = {path for part in self._parts() for path in set(_column(part, "path"))}
        except BaseException:
            self.close()
            raise

    def _resume(self, settings: dict[str, Any]) -> None:
        """Check that the folder is new or was started with the same settings.

        Raises:
            UserError: other settings; a folder of something else; no permission.
        """
        settings, file = json.loads(json.dumps(settings)), self._folder / "settings.json"
        others = sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))
        try:
            before = json.loads(file.read_text(encoding="utf-8")) if others else settings
            assert isinstance(before, dict)
        except (FileNotFoundError, ValueError, AssertionError):
            raise UserError(f"{self._folder} holds other files ({others[0]}); rename it or change --out") from None
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key) and key != "encoder"]
        if changed:  # the path of the encoder may change: "weights" tells encoders apart
            listed = ", ".join(f"{key}: {before.get(key)} before, {settings.get(key)} now" for key in changed)
            raise UserError(f"{self._folder} was started with other settings ({listed}); remove it or change --out")
        for leftover in self._folder.glob("*.tmp"):
            leftover.unlink()
        try:
            with writing(file) as partial:
                partial.write_text(json.dumps(settings), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error.strerror}") from None

    def close(self) -> None:
        """Let other processes write the file; finished parts are kept."""
        self._lock.close()
        with contextlib.suppress(OSError):  # not empty
            self._folder.rmdir()

    def _remove(self) -> None:
        for file in (*self._parts(), *self._folder.glob("*.tmp"), self._folder / "settings.json"):
            file.unlink(missing_ok=True)
        self.close()

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
            self._remove()
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
        self._remove()
        return num_rows

    def _write_parquet(self, file: Path, parts: list[Path]) -> None:
        schema = pq.read_schema(parts[0]).with_metadata(self.metadata)
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
    segments: list[tuple[str, float] | None] | None = None,
) -> pa.Table:
    """A table of n rows. embedding: (n, D). times: (n,), in seconds. segments: parent and start, in seconds."""
    columns = {
        "path": pa.array(paths, pa.string()),
        "seconds": pa.array(seconds, pa.float32()),
        "label": pa.array(labels, pa.string()),
    }
    if segments is not None:
        columns["parent"] = pa.array([each and each[0] for each in segments], pa.string())
        columns["start_seconds"] = pa.array([each and each[1] for each in segments], pa.float64())
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
            is_text = pa.types.is_string(schema.field(name).type)
            kind, none = (np.str_, "") if is_text else (schema.field(name).type.to_pandas_dtype(), np.nan)
            array = np.array([none if value is None else value for value in values], dtype=kind)
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        width = schema.field("embedding").type.list_size
        with archive.open("embedding.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)}
            np.lib.format.write_array_header_1_0(member, header)
            for batch in _batches(parts):
                member.write(batch.column("embedding").flatten().to_numpy(zero_copy_only=False).tobytes())
