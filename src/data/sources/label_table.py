"""Labels from a table: `filename,label[,split][,fold][,group]`, as labels.csv of a folder, or in the index of a shard.

A label cell may hold several labels, separated by `;` (by `|` if `;` separates the columns; by `,` in a column called
labels without `;`), or as a list that Python or NumPy printed; or 0 or 1 for each class (multi-hot). With columns
`onset` and `offset` (seconds), each row is an event, and a file has one row per event.
"""

import posixpath
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from src.data.sources.annotations import (
    Annotation,
    Event,
    class_texts,
    composed,
    event_times,
    fold_names,
    is_missing,
    is_multi_hot,
    printed_list,
    split_name,
)
from src.data.sources.table import read_table
from src.errors import UserError

FILE_COLUMNS = ("filename", "file_name", "file", "path", "fname")
LABEL_COLUMNS = ("label", "labels", "class", "category")


class ForeignTable(UserError):
    """A table without a column of files or of labels: it holds something else, such as transcriptions."""


class Row(NamedTuple):
    """where: its place, for messages. cells: by column name, in lower case."""

    where: str
    cells: dict[str, str]


def read_csv(file: Path, names: Iterable[str]) -> dict[str, Annotation]:
    """The annotations of a CSV, by file name; files without a label are left out.

    Accepts all that `read_table` does, duplicate rows, backslashes in paths, and names in another Unicode form.

    Raises:
        UserError: with the line: a file that is not in `names`, a label that contradicts an earlier row, an invalid
            split, fold or event; a CSV without the required columns.
    """
    table = read_table(file)
    if not table.rows:
        raise UserError(f"{file} has no rows; it needs a header filename,label and one row per file")
    columns = [cell.lower() for cell in table.header]
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise UserError(f"{file} has two columns {twice}")
    for ours, theirs in (("filename", FILE_COLUMNS), ("label", LABEL_COLUMNS)):
        if not any(name in columns for name in theirs):
            raise ForeignTable(f"{file} has no column {ours}; its header is {', '.join(table.header)}")
    rows = [Row(f"{file}, line {line}", dict(zip(columns, cells, strict=True))) for line, cells in table.rows]
    column = next(name for name in FILE_COLUMNS if name in columns)
    find = _Names(names)
    files = []
    for row in rows:
        name = find(row.cells[column])
        if name is None:
            raise UserError(f"{row.where}: there is no audio file {row.cells[column]} in {file.parent}")
        files.append(name)
    return _joined(files, rows, read_rows(rows, "|" if table.delimiter == ";" else ";"))


class _Names:
    """Finds the file that a cell names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self.composed: dict[str, str | None] = {}  # None: two files are the same in composed Unicode
        for name in self.names:
            self.composed[composed(name)] = None if composed(name) in self.composed else name

    def __call__(self, text: str) -> str | None:
        for path in (text, text.replace("\\", "/")):
            name = posixpath.normpath(path)
            if name in self.names:
                return name
            if found := self.composed.get(composed(name)):
                return found
        return None


def read_rows(rows: Sequence[Row], separator: str = ";") -> list[Annotation]:
    """The annotation of each row; `labels` is empty where it has none.

    Raises:
        UserError: with the row: an invalid split, fold or event.
    """
    column = next(name for name in LABEL_COLUMNS if name in rows[0].cells)
    labels = class_texts(_label_texts([row.cells[column] for row in rows], column, separator, rows[0].where))
    folds = _folds(rows)
    return [_annotation(row, each, fold) for row, each, fold in zip(rows, labels, folds, strict=True)]


def _label_texts(cells: Sequence[str], column: str, separator: str, where: str) -> list[list[str]]:
    """The labels in each cell. What is assumed about the separator or about 0 and 1 is a warning that begins with
    `where`."""
    lists = [printed_list(cell) for cell in cells]
    texts = [cell for cell, printed in zip(cells, lists, strict=True) if printed is None]
    if column == "labels" and any("," in cell for cell in texts) and not any(separator in cell for cell in texts):
        separator = ","
        warnings.warn(
            f"{where}: the column labels is split at commas; call it label if they belong to the names", stacklevel=2
        )
    result = [
        [text.strip() for text in (cell.split(separator) if printed is None else printed)]
        for cell, printed in zip(cells, lists, strict=True)
    ]
    rows = [texts for texts in result if not all(map(is_missing, texts))]
    if not is_multi_hot(rows):
        return result
    warnings.warn(
        f"{where}: the column {column} holds 0 or 1 for each of {len(rows[0])} classes (multi-hot): they are called 0 "
        f"to {len(rows[0]) - 1}",
        stacklevel=2,
    )
    return [[str(place) for place, text in enumerate(texts) if text in ("1", "1.0")] for texts in result]


def _folds(rows: Sequence[Row]) -> list[str | None]:
    texts = [row.cells.get("fold", "") for row in rows]
    try:
        return fold_names(texts)
    except ValueError as error:
        row = rows[texts.index(str(error))]
        raise UserError(f"{row.where}: fold {error} is not a name of letters, digits, blanks and . + - _") from None


def _annotation(row: Row, labels: tuple[str, ...], fold: str | None) -> Annotation:
    cells = row.cells
    try:
        split = split_name(cells.get("split", ""))
    except ValueError as error:
        raise UserError(f"{row.where}: split {error} is not one of train, valid, test") from None
    events: tuple[Event, ...] = ()
    onset, offset = cells.get("onset", ""), cells.get("offset", "")
    if labels and "onset" in cells:
        events = tuple(Event(*event_times(onset, offset, row.where), label) for label in labels)
    elif onset or offset:
        raise UserError(f"{row.where}: the event has no label")
    group = composed(cells.get("group", ""))
    return Annotation(labels, split, fold, None if is_missing(group) else group, events)


def _joined(files: list[str], rows: list[Row], annotations: list[Annotation]) -> dict[str, Annotation]:
    """By file, those with a label: events accumulate, other rows of a file must be equal.

    Raises:
        UserError: rows that contradict each other; only some files have a split or fold.
    """
    result: dict[str, Annotation] = {}
    first: dict[str, Row] = {}
    for name, row, annotation in zip(files, rows, annotations, strict=True):
        before = result.get(name, annotation)
        if annotation.events and before.events and before[1:4] == annotation[1:4]:
            result[name] = annotation._replace(
                labels=tuple(dict.fromkeys((*before.labels, *annotation.labels))),
                events=tuple(dict.fromkeys((*before.events, *annotation.events))),
            )
        elif before == annotation:
            result[name] = annotation
        else:
            raise UserError(
                f"{row.where}: {name} has a different label, split or fold in {first[name].where.split(', ')[-1]}; "
                "put several labels of a file in one row, as a;b (a|b if ; separates the columns)"
            )
        first.setdefault(name, row)
    labelled = {name: annotation for name, annotation in result.items() if annotation.labels}
    for column in ("split", "fold"):
        without = [name for name, annotation in labelled.items() if getattr(annotation, column) is None]
        if 0 < len(without) < len(labelled):
            raise UserError(f"{first[without[0]].where}: {without[0]} has no {column}, but other rows have one")
    return labelled
