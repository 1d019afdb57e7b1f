"""Labels of the files in a folder: its table, label files beside the audio, or class folders."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from src.data.sources.annotations import SPLITS, Annotation, composed
from src.data.sources.label_files import read_label_files
from src.data.sources.label_table import ForeignTable, read_csv
from src.data.sources.walk import is_hidden
from src.errors import UserError

_OURS = ("labels.csv", "labels.tsv")
_FOREIGN = "metadata.csv"  # Hugging Face's; it may hold anything


def find_annotations(root: Path, names: Sequence[str]) -> dict[str, Annotation]:
    """Annotations of the files in a folder that have labels: from its labels.csv, labels.tsv or metadata.csv, else from
    label files beside the audio, else from its class folders.

    Class folders are two or more top-level folders that together contain every file. Folders named after splits
    (train, valid, test) may sit above them; they are no classes themselves.

    Args:
        names: of the files, relative to `root`.

    Raises:
        UserError: as `read_csv` and `read_label_files`; a metadata.csv with other columns is passed over instead, with
            a warning; a labels.csv and a labels.tsv.
    """
    tables = find_tables(root)
    if len(tables) > 1 and tables[1].name.lower() in _OURS:
        raise UserError(f"{root} has both {tables[0].name} and {tables[1].name}; keep one of them")
    for table in tables:
        try:
            return read_csv(table, names)
        except ForeignTable as error:
            if table.name.lower() in _OURS:
                raise
            warnings.warn(f"{error}; it is not used for labels", stacklevel=2)
    folders = _class_folders(names)
    if events := read_label_files(root, names):
        if folders:
            warnings.warn(f"the labels of {root} are those of the label files beside the audio", stacklevel=2)
        return events
    return folders


def _class_folders(names: Sequence[str]) -> dict[str, Annotation]:
    parts = {name: PurePosixPath(Path(name).as_posix()).parts for name in names}
    split = all(len(each) > 2 and each[0].lower() in SPLITS for each in parts.values())
    level = 1 if split else 0
    classes = {composed(each[level]) for each in parts.values() if len(each) > level + 1}
    if len(classes) < 2 or any(len(each) <= level + 1 for each in parts.values()):
        return {}
    if all(name.lower() in SPLITS for name in classes):
        return {}
    return {
        name: Annotation((composed(each[level]),), SPLITS[each[0].lower()] if split else None)
        for name, each in parts.items()
    }


def find_tables(root: Path) -> list[Path]:
    """The tables of labels in a folder, whatever the case of their names; in order of precedence."""
    order = (*_OURS, _FOREIGN)
    found = [path for path in root.iterdir() if path.name.lower() in order and path.is_file()]
    return sorted(found, key=lambda path: (order.index(path.name.lower()), path.name))


def empty_class_folders(root: Path, names: Iterable[str]) -> list[str]:
    """Top-level folders with none of the files, if the others are classes (there is no table)."""
    if find_tables(root):
        return []
    filled = {Path(name).parts[0] for name in names if len(Path(name).parts) > 1}
    folders = {each.name for each in root.iterdir() if each.is_dir() and not is_hidden(each.name)}
    return sorted(folders - filled) if filled else []
