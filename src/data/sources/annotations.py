"""Labels of the files in a folder: from a CSV (`filename,label[,split][,fold][,group]`), or from class folders.

A label cell may hold several labels, separated by `;` (by `|` if `;` separates the columns). With columns `onset` and
`offset` (seconds), each row is an event, and a file has one row per event.
"""

import csv
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.data.sources.walk import is_hidden
from src.errors import UserError

CSV_NAMES = ("labels.csv", "metadata.csv")  # in order of precedence; the second is Hugging Face's
SPLITS = {
    "train": "train", "training": "train", "dev": "valid", "val": "valid", "valid": "valid", "validation": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FILENAME, _LABEL = ("filename", "file_name", "file", "path", "fname"), ("label", "labels", "class", "category")


class ForeignTable(UserError):
    """A table without a column of files or of labels: it holds something else, such as transcriptions."""


class Event(NamedTuple):
    """A label from `onset` to `offset`, in seconds."""

    onset: float
    offset: float
    label: str


class Annotation(NamedTuple):
    """Of one file. labels: one or more class names. split: train, valid or test; None if the set is not split.
    fold: 1 to k or None. group: clips of a group stay in one split; None is a group of its own.
    events: where in the file its labels are; empty if unknown."""

    labels: tuple[str, ...]
    split: str | None = None
    fold: int | None = None
    group: str | None = None
    events: tuple[Event, ...] = ()


def find_annotations(root: Path, names: Sequence[str]) -> dict[str, Annotation]:
    """Annotations of the files in a folder, from its CSV or else from its class folders; empty if it has neither.

    Class folders are two or more top-level folders that together contain every file. Folders named after splits
    (train, valid, test) may sit above them.

    Args:
        names: of the files, relative to `root`.

    Raises:
        UserError: as `read_csv`; a metadata.csv with other columns is passed over instead, with a warning.
    """
    for name in CSV_NAMES:
        if (root / name).is_file():
            try:
                return read_csv(root / name, names)
            except ForeignTable as error:
                if name == CSV_NAMES[0]:
                    raise
                warnings.warn(f"{error}; it is not used for labels", stacklevel=2)
    parts = {name: PurePosixPath(Path(name).as_posix()).parts for name in names}
    split = all(len(each) > 2 and each[0].lower() in SPLITS for each in parts.values())
    level = 1 if split else 0
    classes = {each[level] for each in parts.values() if len(each) > level + 1}
    if len(classes) < 2 or any(len(each) <= level + 1 for each in parts.values()):
        return {}
    return {
        name: Annotation((each[level],), SPLITS[each[0].lower()] if split else None) for name, each in parts.items()
    }


def empty_class_folders(root: Path, names: Iterable[str]) -> list[str]:
    """Top-level folders with none of the files, if the others are classes (there is no CSV)."""
    if any((root / name).is_file() for name in CSV_NAMES):
        return []
    filled = {Path(name).parts[0] for name in names if len(Path(name).parts) > 1}
    folders = {each.name for each in root.iterdir() if each.is_dir() and not is_hidden(each.name)}
    return sorted(folders - filled) if filled else []


def read_csv(file: Path, names: Iterable[str]) -> dict[str, Annotation]:
    """The annotations of a CSV, by file name.

    Accepts a byte-order mark, spaces around cells, commas, semicolons or tabs between columns, and duplicate rows.

    Raises:
        UserError: with the line: a file that is not in `names`, no label, a label that contradicts an earlier row, an
            invalid split or fold; a CSV without the required columns.
    """
    rows, separator = _rows(file)
    files = set(names)
    annotations: dict[str, Annotation] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        name = Path(row["filename"]).as_posix().removeprefix("./")
        if name not in files:
            raise UserError(f"{file}, line {line}: there is no audio file {name} in {file.parent}")
        annotation = _annotation(row, name, separator, file, line)
        joined = _join(annotations.get(name, annotation), annotation)
        if joined is None:
            raise UserError(
                f"{file}, line {line}: {name} has a different label, split or fold in line {lines[name]}; "
                f"put several labels of a file in one row, as a{separator}b"
            )
        annotations[name] = joined
        lines.setdefault(name, line)
    _check_all_or_none(annotations, lines, file)
    return annotations


def _annotation(row: dict[str, str], name: str, separator: str, file: Path, line: int) -> Annotation:
    """Of one row."""
    labels = tuple(dict.fromkeys(label.strip() for label in row["label"].split(separator) if label.strip()))
    if not labels:
        raise UserError(f"{file}, line {line}: {name} has no label")
    return Annotation(
        labels,
        _split(row.get("split"), file, line),
        _fold(row.get("fold"), file, line),
        row.get("group") or None,
        tuple(Event(*_times(row, file, line), label) for label in labels) if "onset" in row else (),
    )


def _join(before: Annotation, row: Annotation) -> Annotation | None:
    """Merge the rows of a file: events accumulate, other rows must be equal; None if they are not."""
    if row.events and before[1:4] == row[1:4]:
        labels = tuple(dict.fromkeys((*before.labels, *row.labels)))
        return row._replace(labels=labels, events=tuple(dict.fromkeys((*before.events, *row.events))))
    return row if before == row else None


def _check_all_or_none(annotations: dict[str, Annotation], lines: dict[str, int], file: Path) -> None:
    """Raises UserError: only some rows have a split or fold."""
    for column in ("split", "fold"):
        if len({getattr(annotation, column) is None for annotation in annotations.values()}) == 2:
            line, name = min((lines[n], n) for n, a in annotations.items() if getattr(a, column) is None)
            raise UserError(f"{file}, line {line}: {name} has no {column}, but other rows have one")


def _rows(file: Path) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """(line, cells by canonical column name) of each row, and the separator of labels."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8") from None
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(lines, delimiter=delimiter)
    columns: list[str] | None = None
    rows = []
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if columns is None:
            columns = _columns(cells, file)
            continue
        row = dict(zip(columns, [*cells, *[""] * (len(columns) - len(cells))], strict=False))
        rows.append((reader.line_num, row))
    if columns is None or not rows:
        raise UserError(f"{file} has no rows; it needs a header filename,label and one row per file")
    return rows, "|" if delimiter == ";" else ";"


def _columns(cells: list[str], file: Path) -> list[str]:
    lowered = [cell.lower() for cell in cells]
    for ours, theirs in (("filename", _FILENAME), ("label", _LABEL)):
        position = next((lowered.index(name) for name in theirs if name in lowered), None)
        if position is None:
            raise ForeignTable(f"{file} has no column {ours}; its header is {', '.join(cells)}")
        lowered[position] = ours
    return lowered


def _split(value: str | None, file: Path, line: int) -> str | None:
    if not value:
        return None
    if value.lower() not in SPLITS:
        raise UserError(f"{file}, line {line}: split {value} is not one of train, valid, test")
    return SPLITS[value.lower()]


def _times(row: dict[str, str], file: Path, line: int) -> tuple[float, float]:
    try:
        onset, offset = float(row["onset"]), float(row.get("offset", ""))
    except ValueError:
        raise UserError(f"{file}, line {line}: onset and offset are not both numbers of seconds") from None
    if not 0 <= onset < offset:
        raise UserError(f"{file}, line {line}: the event runs from {onset:g} to {offset:g} s; its onset must be first")
    return onset, offset


def _fold(value: str | None, file: Path, line: int) -> int | None:
    if not value:
        return None
    if not value.isdigit():
        raise UserError(f"{file}, line {line}: fold {value} is not a number")
    return int(value)
