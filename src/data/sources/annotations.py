"""What is known of a clip besides its sound: its labels, split, fold, group and events; and which values are none."""

import ast
import contextlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from src.errors import UserError

SPLITS = {
    "train": "train", "training": "train", "dev": "valid", "val": "valid", "valid": "valid", "validation": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_MISSING = {"", "nan", "null", "<na>"}  # as tables write a value that is not there
_INTEGRAL = re.compile(r"(-?[0-9]+)(\.0*)?")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class Event(NamedTuple):
    """A label from `onset` to `offset`, in seconds."""

    onset: float
    offset: float
    label: str


class Annotation(NamedTuple):
    """Of one clip. labels: one or more class names. split: train, valid or test; None if the set is not split.
    fold: any name, or None. group: clips of a group stay in one split; None is a group of its own.
    events: where in the clip its labels are; empty if unknown."""

    labels: tuple[str, ...]
    split: str | None = None
    fold: str | None = None
    group: str | None = None
    events: tuple[Event, ...] = ()


def is_missing(text: str) -> bool:
    """Does this stand for no value: an empty cell, NaN or null?"""
    return text.strip().lower() in _MISSING


def composed(text: str) -> str:
    """A name in composed Unicode (NFC), as which it is compared: a Mac writes `ö` as two characters, others as one."""
    return unicodedata.normalize("NFC", text)


def class_texts(column: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The class names of each clip, in composed Unicode, without values that are missing and without repetitions.

    -1 is missing too, unless there are other negative numbers. If all are whole numbers, the decimals that a table of
    floats has are dropped: `1.0` is the class `1`.
    """
    column = [[composed(text) for text in texts] for texts in column]
    names = {text for texts in column for text in texts if not is_missing(text)}
    shown = whole_numbers(names)
    negative = {text for text in shown.values() if text.startswith("-") and _NUMBER.fullmatch(text)}
    none = {"-1", "-1.0"} if negative <= {"-1", "-1.0"} else set()
    return [
        tuple(dict.fromkeys(shown[text] for text in texts if text in shown and shown[text] not in none))
        for texts in column
    ]


def printed_list(text: str) -> list[str] | None:
    """The values of a list or array as JSON has it or Python and NumPy print it: `["dog"]`, `['dog', 'cat']`,
    `[1 0 1]`; None for other text."""
    if not re.fullmatch(r"\[.*\]", text, re.DOTALL):
        return None
    with contextlib.suppress(ValueError):
        if all(isinstance(value, str) for value in json.loads(text)):
            return json.loads(text)
    if re.search("['\"]", text):
        text = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", text)
    else:
        text = re.sub(r"(?<=[\w.])\s+(?=[-\w.])", ", ", text)
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a name in brackets, such as [noise]
        return None
    return [str(value) for value in values] if isinstance(values, list) else None


def labels_cell(labels: Sequence[str]) -> str:
    """Labels as the cell of a table: `a;b`, or a JSON list where that would be read as other labels."""
    cell = ";".join(labels)
    ambiguous = any(";" in label for label in labels) or printed_list(cell) is not None
    return json.dumps(list(labels), ensure_ascii=False) if ambiguous else cell


def is_multi_hot(rows: Sequence[Sequence[Any]]) -> bool:
    """Do all rows have 0 or 1 for each of the same number of classes, two or more?"""
    digits = (0, 1, "0", "1", "0.0", "1.0")
    lengths = {len(row) for row in rows}
    return len(lengths) == 1 and min(lengths) >= 2 and all(value in digits for row in rows for value in row)


def whole_numbers(texts: Iterable[str]) -> dict[str, str]:
    """By text: the same without `.0` if all are whole numbers and one is written so; else as it is."""
    texts = list(texts)
    matches = [_INTEGRAL.fullmatch(text) for text in texts]
    if all(matches) and any("." in text for text in texts):
        return {text: match[1] for text, match in zip(texts, matches, strict=True) if match}
    return {text: text for text in texts}


def fold_names(texts: Sequence[str]) -> list[str | None]:
    """The fold of each clip, None for a missing one; `1.0` is the fold `1`.

    Raises:
        ValueError: a name that cannot be part of a folder's name.
    """
    shown = whole_numbers({text for text in texts if not is_missing(text)})
    if odd := next((text for text in shown if not re.fullmatch(r"[^\W_][\w .+-]*", text)), None):
        raise ValueError(odd)
    return [shown.get(text) for text in texts]


def in_order(names: Iterable[str]) -> list[str]:
    """Class or fold names, each once: numbers by value, then the others, 2 before 10 in them too."""

    def key(name: str) -> tuple:
        if _NUMBER.fullmatch(name):
            return 0, float(name), name
        parts = re.split(r"([0-9]+)", name)  # text, number, text, ...
        return 1, [int(part) if number % 2 else part for number, part in enumerate(parts)], name

    return sorted(set(names), key=key)


def split_name(text: str) -> str | None:
    """train, valid or test; None for a missing one.

    Raises:
        ValueError: another name.
    """
    if is_missing(text):
        return None
    if text.lower() not in SPLITS:
        raise ValueError(text)
    return SPLITS[text.lower()]


def event_times(onset: str, offset: str, where: str) -> tuple[float, float]:
    """Onset and offset, in seconds.

    Raises:
        UserError: not numbers, or not a range; it begins with `where`.
    """
    try:
        begin, end = float(onset), float(offset)
    except ValueError:
        raise UserError(f"{where}: onset and offset are not both numbers of seconds") from None
    if not 0 <= begin < end < float("inf"):
        raise UserError(f"{where}: the event runs from {begin:g} to {end:g} s; its onset must be first")
    return begin, end
