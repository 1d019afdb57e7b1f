"""Labels in files beside the audio of a tar, as WebDataset writes them: `000.wav` has its class in `000.cls`, or its
labels, split, fold, group and events in `000.json`.

Other files, such as captions in `000.txt`, have no labels.
"""

import json
import posixpath
from typing import Any

from src.data.sources.label_table import LABEL_COLUMNS

COLUMNS = (*LABEL_COLUMNS, "split", "fold", "group", "events")
_MAX_BYTES = 1_000_000  # a larger file holds something else


def sidecar_key(name: str) -> str:
    """What the files of a clip have in common: the path up to the first dot of the file's name."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.partition(".")[0])


def is_sidecar(name: str, size: int) -> bool:
    return name.lower().endswith((".cls", ".json")) and size <= _MAX_BYTES


def read_sidecar(name: str, data: bytes, columns: dict[str, str]) -> str | None:
    """Add what a file says to the columns of its clip; a class in `.cls` comes before labels in `.json`.

    Labels are in the column label, however the file calls them; a list is JSON in its cell.

    Returns:
        What is left out or assumed, in words.
    """
    of_class = name.lower().endswith(".cls")
    try:
        text = data.decode("utf-8-sig")
        values = {"label": text.strip()} if of_class else json.loads(text)
    except ValueError as error:  # of JSON, or of Unicode
        return f"{name} cannot be read ({error})"
    if not isinstance(values, dict):
        return None
    values = {key.lower(): value for key, value in values.items() if value is not None}
    key = next((key for key in LABEL_COLUMNS if key in values), "label")
    remark = None
    for column in ("label", "split", "fold", "group", "events"):
        value = values.get(key if column == "label" else column)
        if isinstance(value, dict):
            remark = f"{name} has no name, number or list of them as {key if column == 'label' else column}"
        elif value is not None and (of_class or column not in columns):
            if key == "labels" and column == "label" and isinstance(value, str) and "," in value and ";" not in value:
                remark = f"{name} has labels that are split at commas"
                value = [part.strip() for part in value.split(",")]
            columns[column] = cell_text(value)
    return remark


def cell_text(value: Any) -> str:
    """A value as the text of a table's cell; a list as JSON: of texts, or of events."""
    if value is None or not isinstance(value, list):
        return "" if value is None else str(value)
    if not any(isinstance(each, list) for each in value):
        value = [cell_text(int(each) if isinstance(each, bool) else each) for each in value]
    return json.dumps(value, ensure_ascii=False)
