"""Labels in the index beside a shard: the columns of a labels.csv, with the events of a clip as JSON."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from src.data.sources.annotations import Annotation, Event
from src.data.sources.index import tar_members
from src.data.sources.label_table import LABEL_COLUMNS, Row, read_rows
from src.data.sources.storage import open_filesystem
from src.errors import UserError

_COLUMNS = (*LABEL_COLUMNS, "split", "fold", "group", "events")


def packed_columns(annotation: Annotation) -> dict[str, str]:
    """The columns of a clip in the index.

    Raises:
        ValueError: a class name with `;`, which separates them.
    """
    if odd := next((label for label in annotation.labels if ";" in label), None):
        raise ValueError(odd)
    columns = {"label": ";".join(annotation.labels)}
    rest = {"split": annotation.split, "fold": annotation.fold, "group": annotation.group}
    columns |= {column: value for column, value in rest.items() if value is not None}
    if annotation.events:
        columns["events"] = json.dumps(annotation.events, ensure_ascii=False)
    return columns


def packed_annotations(shards: Sequence[str]) -> list[dict[str, Annotation]]:
    """For each shard, by member name, of the clips that have a label; empty where it has no index with labels.

    Raises:
        UserError: an invalid split, fold or event. OSError: a shard does not answer.
    """
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(_labels_of, shards))
    column = next((name for name in LABEL_COLUMNS if any(table and name in table for table in tables)), None)
    if column is None:
        return [{} for _ in shards]
    rows = [
        Row(f"{shard}, {name}", {column: "", **dict(zip(table, cells, strict=True))})
        for shard, table in zip(shards, tables, strict=True)
        for name, *cells in zip(table.get("name", ()), *table.values(), strict=True)
    ]
    annotations = iter(read_rows(rows) if rows else ())
    events = iter([_events(row) for row in rows])
    return [
        {
            name: annotation
            for name in table.get("name", ())
            if (annotation := next(annotations)._replace(events=next(events))).labels
        }
        for table in tables
    ]


def _labels_of(shard: str) -> dict[str, list[str]]:
    """The columns of the index with the labels, and `name`; none without labels."""
    filesystem, path = open_filesystem(f"{shard}.index.parquet")
    if not filesystem.exists(path):
        return {}
    with filesystem.open(path, "rb") as file:
        known = {name.lower(): name for name in pq.read_schema(file).names}
    columns = {name: known[name] for name in _COLUMNS if name in known}
    if not set(columns) & set(LABEL_COLUMNS):
        return {}
    table = tar_members(shard, list(columns.values()))
    if not set(columns.values()) <= set(table.column_names):  # an index of another tar is not used
        return {}
    lists = {name: table.column(column).to_pylist() for name, column in (("name", "name"), *columns.items())}
    return {name: ["" if value is None else str(value) for value in values] for name, values in lists.items()}


def _events(row: Row) -> tuple[Event, ...]:
    text = row.cells.get("events", "")
    try:
        return tuple(
            Event(float(onset), float(offset), str(label)) for onset, offset, label in json.loads(text or "[]")
        )
    except (ValueError, TypeError):
        raise UserError(f"{row.where}: events are not a list of [onset, offset, label]: {text[:60]}") from None
