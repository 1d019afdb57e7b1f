"""Read a table of embeddings (`EmbeddingFile`) as an index: settings, nearest rows, a part for a map.

The search is exact and reads the table in blocks, so that memory does not grow with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.data.sources.storage import open_filesystem
from src.errors import UserError
from src.evaluation.embedding_folder import part_files

_SETTINGS = {"encoder", "level", "layers", "pooling"}  # that an index must have in its metadata


class Neighbour(NamedTuple):
    """A row near the query. time: of the best token, in seconds; None in an index of clips."""

    similarity: float
    path: str
    label: str | None
    time: float | None


def read_settings(index: str | Path) -> dict[str, Any]:
    """How the embeddings of an index were made.

    Raises:
        UserError: no such file, not an index, one without rows, a folder of which parts are missing.
    """
    if str(index).endswith(".npz"):
        raise UserError(f"{index} is an npz; the search reads parquet; use python -m src.embed ... --out FILE.parquet")
    files, num_rows = index_files(index), 0
    try:
        for place in files:
            with _open(place) as file:
                num_rows += file.metadata.num_rows
                schema = file.schema_arrow
        settings = json.loads((schema.metadata or {})[b"embedding"])
        valid = set(settings) >= _SETTINGS and "path" in schema.names
        valid = valid and pa.types.is_fixed_size_list(schema.field("embedding").type)
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror or 'it is damaged'}; rebuild it") from None
    except (ValueError, KeyError, TypeError):  # not parquet or not JSON, no such key or column, not a dictionary
        valid = False
    if not valid:
        raise UserError(f"{index} is not a table of embeddings; create one with python -m src.embed")
    if not num_rows:
        raise UserError(f"{index} has no rows; rebuild it with python -m src.embed")
    if settings["level"] == "frame":
        settings["pooling"] = "mean"
    return settings


def index_files(index: str | Path) -> list[str]:
    """The file, or those of a folder.

    Raises:
        UserError: there is none; a folder of which parts are missing.
    """
    index = str(index)
    filesystem, path = open_filesystem(index)
    if filesystem.isdir(path):
        return part_files(index)
    if not filesystem.isfile(path):
        where = "" if "://" in index else f" (looked in {Path.cwd()})"
        raise UserError(f"there is no index {index}{where}; create one with python -m src.embed")
    return [index]


def _open(file: str) -> pq.ParquetFile:
    filesystem, path = open_filesystem(file)
    opened = filesystem.open(path, "rb") if "://" in file else path
    return pq.ParquetFile(opened, pre_buffer=False, buffer_size=2**20)  # else it loads whole row groups, or all


def neighbours(query: np.ndarray, index: str | Path, top: int) -> list[Neighbour]:
    """The `top` rows with the largest cosine similarity, one per path, in descending order.

    Args:
        query: (D,).

    Raises:
        UserError: the index has another width, or is damaged.
    """
    files = index_files(index)
    width = _width(files)
    if width != len(query):
        raise UserError(f"{index} has {width} values per row, the query {len(query)}; it was made with another encoder")
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    best: dict[str, Neighbour] = {}
    for block in _blocks(files):
        rows = block.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        similarity = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        paths, others = block.column("path").to_pylist(), block.drop_columns(["embedding"])
        block_best: dict[str, Neighbour] = {}
        for i in np.argsort(-similarity, kind="stable").tolist():
            if paths[i] not in block_best:
                row = others.slice(i, 1).to_pylist()[0]
                label, time = row.get("label"), row.get("time")
                block_best[paths[i]] = Neighbour(float(similarity[i]), paths[i], label, time)
            if len(block_best) == top:
                break
        for path, candidate in block_best.items():
            best[path] = max(candidate, best.get(path, candidate), key=lambda each: each.similarity)
        best = {each.path: each for each in sorted(best.values(), key=lambda each: -each.similarity)[:top]}
    return list(best.values())


def _width(files: list[str]) -> int:
    with _open(files[0]) as file:
        return file.schema_arrow.field("embedding").type.list_size


def _blocks(files: list[str]) -> Iterator[pa.RecordBatch]:
    """Raises UserError: damaged data."""
    for place in files:
        try:
            with _open(place) as file:
                yield from file.iter_batches(8192)
        except (OSError, pa.ArrowException):
            raise UserError(f"{place} is damaged; rebuild it with python -m src.embed") from None


def sample_rows(index: str | Path, most: int) -> tuple[list[str], list[str], np.ndarray, int]:
    """Paths, labels ("" for none) and embeddings (n, D) of at most `most` rows, evenly spaced, and how many there are.

    Raises:
        UserError: the index is damaged.
    """
    files, total = index_files(index), 0
    for place in files:
        with _open(place) as file:
            total += file.metadata.num_rows
    wanted = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
    width = _width(files)
    paths, labels, parts, start = list[str](), list[str](), [], 0
    for block in _blocks(files):
        here = wanted[(wanted >= start) & (wanted < start + block.num_rows)] - start
        rows = block.take(pa.array(here))
        paths += rows.column("path").to_pylist()
        has_labels = "label" in block.schema.names
        labels += [each or "" for each in rows.column("label").to_pylist()] if has_labels else [""] * len(here)
        parts.append(rows.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, width))
        start += block.num_rows
    return paths, labels, np.concatenate(parts), total
