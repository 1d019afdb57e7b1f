"""Labels, folds, groups and events in the columns of a Hugging Face dataset."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from src.config.settings import SourceConfig
from src.data.sources.annotations import (
    Annotation,
    class_texts,
    composed,
    fold_names,
    in_order,
    is_missing,
    is_multi_hot,
    printed_list,
)
from src.data.sources.label_table import Row
from src.data.sources.packed_labels import read_events
from src.errors import UserError, nearest


def read_annotations(dataset: Any, config: SourceConfig) -> tuple[list[str], list[Annotation | None]]:
    """Class names, and the labels, fold, group and events of each row.

    A label column holds names, numbers or ClassLabels, or lists of them, or a list with 0 or 1 for each class; strings
    are split at `label_separator`. Events are read from a column as `python -m src.pack` writes it.

    Raises:
        UserError: no such column; lists of numbers that are no classes; a fold that cannot name a folder; events that
            are none of the labels.
    """
    dataset = dataset.with_format(None)
    labels = _column(dataset, "label_column", config.label_column)
    folds = _texts(_column(dataset, "fold_column", config.fold_column))
    groups = _texts(_column(dataset, "group_column", config.group_column))
    try:
        folds_of_rows = fold_names(folds)
    except ValueError as error:
        raise UserError(
            f"fold_column={config.fold_column}: fold {error} is not a name of letters, digits, blanks and . + - _"
        ) from None
    feature = dataset.features[config.label_column]
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    names = names and [composed(name) for name in names]
    classes = _classes(labels, names, config)
    class_names = names or in_order(label for each in classes for label in each)
    annotations = [
        Annotation(each, None, fold, None if is_missing(group) else composed(group)) if each else None
        for each, fold, group in zip(classes, folds_of_rows, groups, strict=True)
    ]
    for number, text in enumerate(_packed_events(dataset)):
        if text and (annotation := annotations[number]):
            row = Row(f"{config.path}, row {number}", {"events": text})
            annotations[number] = annotation._replace(events=read_events(row, annotation.labels))
    return class_names, annotations


def _packed_events(dataset: Any) -> list[str]:
    """The column `events`, where it is text and each cell empty or the JSON of a list of lists; else none."""
    if "events" not in dataset.column_names or getattr(dataset.features["events"], "dtype", None) != "string":
        return []
    texts = _texts(dataset["events"])
    return texts if all(text.startswith("[[") for text in texts if text) else []


def _column(dataset: Any, key: str, column: str | None) -> list[Any]:
    if column is None:
        return [None] * len(dataset)
    if column not in dataset.column_names:
        raise UserError(f"{key}={column} is not a column{nearest(column, dataset.column_names)}")
    return list(dataset[column])


def _texts(values: Sequence[Any]) -> list[str]:
    return ["" if value is None else str(value).strip() for value in values]


def _classes(values: list[Any], names: list[str] | None, config: SourceConfig) -> list[tuple[str, ...]]:
    """The class names of each row."""
    rows = [value if isinstance(value, list | tuple) else [value] for value in values]
    if any(isinstance(value, list | tuple) for value in values):
        lists = [value for value in values if value]
        if is_multi_hot(lists) and (names is None or _is_of_names(lists, names)):
            places = names or [str(number) for number in range(len(lists[0]))]
            if not names:
                warnings.warn(
                    f"label_column={config.label_column} holds 0 or 1 for each of {len(places)} classes (multi-hot): "
                    f"they are called 0 to {len(places) - 1}",
                    stacklevel=2,
                )
            return [tuple(places[i] for i, one in enumerate(value or ()) if one) for value in values]
        _check_classes(lists, config)
    if config.label_separator and names:
        raise UserError(
            f"label_separator={config.label_separator} has no effect: label_column={config.label_column} holds class "
            "numbers, not text; set label_separator to null"
        )
    if names:
        return [tuple(dict.fromkeys(names[each] for each in row if each is not None and each >= 0)) for row in rows]
    texts = [_listed(_texts(row)) for row in rows]
    if separator := config.label_separator:
        texts = [[part.strip() for text in row for part in text.split(separator)] for row in texts]
    return class_texts(texts)


def _listed(texts: list[str]) -> list[str]:
    """With the values of lists that were written as text."""
    printed = [printed_list(text) for text in texts]
    return [
        each for text, values in zip(texts, printed, strict=True) for each in ([text] if values is None else values)
    ]


def _is_of_names(lists: list[Sequence[Any]], names: list[str]) -> bool:
    """Are they as long as there are names? Two equal values tell 0 and 1 from class numbers."""
    return len(lists[0]) == len(names) and any(len(set(each)) < len(each) for each in lists)


def _check_classes(lists: list[Sequence[Any]], config: SourceConfig) -> None:
    """Raises UserError: lists of numbers that are not class numbers: fractions, or repeated ones, such as scores."""
    for each in lists:
        numbers = [value for value in each if isinstance(value, int | float) and not math.isnan(value)]
        repeated = len(numbers) != len(set(numbers))
        if repeated or any(not float(value).is_integer() for value in numbers):
            raise UserError(
                f"label_column={config.label_column} holds lists of numbers such as {str(list(each))[:60]}; each must "
                "list class numbers, or hold 0 or 1 for each class (multi-hot), in all rows alike"
            )
