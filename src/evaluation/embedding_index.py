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

from src.errors import UserError

_SETTINGS = {"encoder", "level", "layers", "pooling"}  # that an index must have in its metadata


class Neighbour(NamedTuple):
    """A row near the query. time: of the best token, in seconds; None in an index of clips."""

    similarity: float
    path: str
    label: str | None
    time: float | None


def read_settings(index: Path) -> dict[str, Any]:
    """How the embeddings of an index were made.

    Raises:
        UserError: no such file, not an index, or one without rows.
    """
    if index.suffix == ".npz":
        raise UserError(f"{index} is an npz; the search reads parquet; use python -m src.embed ... --out FILE.parquet")
    if not index.is_file():
        raise UserError(f"there is no index {index} (looked in {Path.cwd()}); create one with python -m src.embed")
    try:
        with pq.ParquetFile(index) as file:
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
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


def neighbours(query: np.ndarray, index: Path, top: int) -> list[Neighbour]:
    """The `top` rows with the largest cosine similarity, one per path, in descending order.

    Args:
        query: (D,).

    Raises:
        UserError: the index has another width, or is damaged.
    """
    file = pq.ParquetFile(index, pre_buffer=False, buffer_size=2**20)  # else it loads whole row groups, or all
    width = file.schema_arrow.field("embedding").type.list_size
    if width != len(query):
        raise UserError(f"{index} has {width} values per row, the query {len(query)}; it was made with another encoder")
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    best: dict[str, Neighbour] = {}
    for block in _blocks(file, index):
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


def _blocks(file: pq.ParquetFile, index: Path) -> Iterator[pa.RecordBatch]:
    """Raises UserError: damaged data."""
    try:
        yield from file.iter_batches(8192)
    except (OSError, pa.ArrowException):
        raise UserError(f"{index} is damaged; rebuild it with python -m src.embed") from None


def sample_rows(index: Path, most: int) -> tuple[list[str], list[str], np.ndarray, int]:
    """Paths, labels ("" for none) and embeddings (n, D) of at most `most` rows, evenly spaced, and how many there are.

    Raises:
        UserError: the index is damaged.
    """
    file = pq.ParquetFile(index, pre_buffer=False, buffer_size=2**20)
    total = file.metadata.num_rows
    wanted = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
    width = file.schema_arrow.field("embedding").type.list_size
    paths, labels, parts, start = list[str](), list[str](), [], 0
    for block in _blocks(file, index):
        here = wanted[(wanted >= start) & (wanted < start + block.num_rows)] - start
        rows = block.take(pa.array(here))
        paths += rows.column("path").to_pylist()
        has_labels = "label" in block.schema.names
        labels += [each or "" for each in rows.column("label").to_pylist()] if has_labels else [""] * len(here)
        parts.append(rows.column("embedding").flatten().to_numpy(zero_copy_only=False).reshape(-1, width))
        start += block.num_rows
    return paths, labels, np.concatenate(parts), total
