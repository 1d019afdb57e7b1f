"""Labels in the index beside a shard: the columns of a labels.csv, with the events of a clip as JSON."""

import json

import pyarrow.parquet as pq

from src.data.sources.annotations import Annotation, Event
from src.data.sources.index import tar_members
from src.data.sources.label_table import LABEL_COLUMNS, Row, read_rows
from src.data.sources.storage import open_filesystem

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


def packed_annotations(shard: str) -> dict[str, Annotation]:
    """By member name, of the clips that have a label; empty if there is no index, or it has none.

    Raises:
        UserError: an invalid split or fold. OSError: the shard does not answer.
    """
    filesystem, path = open_filesystem(f"{shard}.index.parquet")
    if not filesystem.exists(path):
        return {}
    with filesystem.open(path, "rb") as file:
        known = {name.lower(): name for name in pq.read_schema(file).names}
    columns = [name for name in _COLUMNS if name in known]
    if not set(columns) & set(LABEL_COLUMNS):
        return {}
    table = tar_members(shard)
    if known[columns[0]] not in table.column_names:  # an index of another tar is not used
        return {}
    names = table.column("name").to_pylist()
    cells = {name: [value or "" for value in table.column(known[name]).to_pylist()] for name in columns}
    rows = [Row(f"{shard}, {name}", {key: cells[key][i] for key in columns}) for i, name in enumerate(names)]
    if not rows:
        return {}
    annotations = {
        name: annotation._replace(events=_events(row.cells.get("events", "")))
        for name, row, annotation in zip(names, rows, read_rows(rows), strict=True)
    }
    return {name: annotation for name, annotation in annotations.items() if annotation.labels}


def _events(text: str) -> tuple[Event, ...]:
    return tuple(Event(*each) for each in json.loads(text)) if text else ()
