"""Labels in files beside the audio of a tar, as WebDataset writes them: `000.wav` has its class in `000.cls`, or its
labels, split, fold, group and events in `000.json`.

Other files, such as captions in `000.txt`, have no labels.
"""

import json
import posixpath
import warnings
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


def read_sidecar(name: str, data: bytes, columns: dict[str, str]) -> None:
    """Add what a file says to the columns of its clip; a class in `.cls` comes before labels in `.json`.

    A list is JSON in its cell. What cannot be read is left out, with a warning.
    """
    try:
        text = data.decode("utf-8-sig")
        values = {"label": text.strip()} if name.lower().endswith(".cls") else json.loads(text)
    except ValueError as error:  # JSON, and Unicode
        warnings.warn(f"{name} cannot be read ({error}); its labels are left out", stacklevel=2)
        return
    if not isinstance(values, dict):
        return
    cells = {key.lower(): _cell(value) for key, value in values.items() if key.lower() in COLUMNS and value is not None}
    if odd := [key for key, cell in cells.items() if cell is None]:
        warnings.warn(f"{name}: {odd[0]} is no text, number or list of them; it is left out", stacklevel=2)
    of_class = name.lower().endswith(".cls")
    for key, cell in cells.items():
        if cell is not None and (of_class or key not in columns):
            columns[key] = cell


def _cell(value: Any) -> str | None:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return None if isinstance(value, dict) else str(value)
