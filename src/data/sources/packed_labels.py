"""Labels of shards: in the index beside one, or in files beside the audio in the tar; the columns of a labels.csv, with
the events of a clip as JSON."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from src.data.sources.annotations import Annotation, Event, composed, event_times, labels_cell
from src.data.sources.index import tar_members
from src.data.sources.label_table import LABEL_COLUMNS, Row, read_rows
from src.data.sources.sidecars import COLUMNS, cell_text
from src.errors import UserError


def packed_columns(annotation: Annotation) -> dict[str, str]:
    """The columns of a clip in the index."""
    columns = {"label": labels_cell(annotation.labels)}
    rest = {"split": annotation.split, "fold": annotation.fold, "group": annotation.group}
    columns |= {column: value for column, value in rest.items() if value is not None}
    if annotation.events:
        columns["events"] = json.dumps(annotation.events, ensure_ascii=False)
    return columns


def packed_annotations(shards: Sequence[str]) -> list[dict[str, Annotation]]:
    """For each shard, by member name, of the clips that have a label; empty where nothing has labels.

    Raises:
        UserError: an invalid split, fold or event. OSError: a shard does not answer.
    """
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(_labels_of, shards))
    result: list[dict[str, Annotation]] = [{} for _ in shards]
    for column in LABEL_COLUMNS:  # shards of several sets may call it differently
        rows = [
            (number, name, Row(f"{shards[number]}, {name}", dict(zip(table, cells, strict=True))))
            for number, table in enumerate(tables)
            if next((each for each in LABEL_COLUMNS if each in table), None) == column
            for name, *cells in zip(table["name"], *table.values(), strict=True)
        ]
        annotations = read_rows([row for _, _, row in rows]) if rows else []
        for (number, name, row), annotation in zip(rows, annotations, strict=True):
            if annotation.labels:
                result[number][name] = annotation._replace(events=read_events(row, annotation.labels))
    return result


def _labels_of(shard: str) -> dict[str, list[str]]:
    """The columns with the labels, and `name`; none without labels."""
    table = tar_members(shard, COLUMNS)
    names = [name for name in COLUMNS if name in table.column_names]
    if not set(names) & set(LABEL_COLUMNS):
        return {}
    return {name: [cell_text(value) for value in table.column(name).to_pylist()] for name in ("name", *names)}


def read_events(row: Row, labels: Sequence[str]) -> tuple[Event, ...]:
    """The events of a row. Raises UserError: they are no list of [onset, offset, label], or of other labels."""
    text = row.cells.get("events", "")
    try:
        events = [(str(onset), str(offset), composed(str(label))) for onset, offset, label in json.loads(text or "[]")]
    except (ValueError, TypeError):
        raise UserError(f"{row.where}: events are not a list of [onset, offset, label]: {text[:60]}") from None
    if odd := next((label for _, _, label in events if label not in labels), None):
        raise UserError(f"{row.where}: an event is of {odd}, which is not among its labels {';'.join(labels)}")
    return tuple(Event(*event_times(onset, offset, row.where), label) for onset, offset, label in events)
