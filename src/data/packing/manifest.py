"""What goes into shards: files from folders, lists and manifests, their names in the shard, and their labels."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.audio.decode import SUFFIXES
from src.data.sources.annotations import find_annotations
from src.data.sources.folder import as_text, find_audio
from src.errors import UserError

_PATH_COLUMNS = ("filename", "file_name", "file", "path", "fname", "audio")
_MEASURED = {"name", "offset", "size", "seconds", "sample_rate", "channels", "checksum"}  # columns of our own index
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class PackItem(NamedTuple):
    """path: of the file. name: in the shard. columns: labels and what else a manifest says of it."""

    path: str
    name: str
    columns: dict[str, str]


def list_clips(inputs: Sequence[str]) -> list[PackItem]:
    """All clips, in the order of the inputs; those of a folder in the order of their paths.

    A name is the path inside the input's folder, with the folder's own name before it where there are several inputs.
    Readers of WebDataset cut names at the first dot and join what is left: other dots become `_`, and what would be
    joined gets a number.

    Args:
        inputs: audio files; folders, searched with their subfolders, whose labels.csv or class folders are carried;
            manifests: .csv or .tsv with a column `filename`, whose other columns are carried, or .txt with a path a
            line. Paths in a manifest are relative to it.

    Raises:
        UserError: nothing of that name, no audio in it, a manifest that is none.
    """
    clips = [clip for text in inputs for clip in _of_input(Path(text).expanduser(), len(inputs) > 1)]
    used: set[str] = set()
    named = []
    for clip in clips:
        name = PurePosixPath(clip.name)
        stem, suffix = str(name.with_name(name.stem.replace(".", "_"))), name.suffix
        key, number = stem, 1
        while key in used:
            key, number = f"{stem}-{number}", number + 1
        used.add(key)
        named.append(clip._replace(name=key + suffix))
    return named


def _of_input(path: Path, several: bool) -> list[PackItem]:
    if path.is_dir():
        return _of_folder(path, f"{path.resolve().name}/" if several else "")
    if not path.exists():
        raise UserError(f"there is no file or folder {path} (looked in {Path.cwd()})")
    if path.suffix.lower() in SUFFIXES:
        return [PackItem(str(path), path.name, {})]
    if path.suffix.lower() in (*_DELIMITERS, ".txt"):
        return list(_of_manifest(path))
    raise UserError(
        f"{path} is not audio by its name ({', '.join(SUFFIXES)}), nor a folder, nor a manifest (.csv, .tsv, .txt)"
    )


def _of_folder(root: Path, prefix: str) -> list[PackItem]:
    files = find_audio(root)
    names = [Path(as_text(file.relative_to(root))).as_posix() for file in files]
    annotations = find_annotations(root, names)
    clips = []
    for file, name in zip(files, names, strict=True):
        columns = {}
        if (known := annotations.get(name)) is not None:
            columns = {"label": ";".join(known.labels)}
            rest = {"split": known.split, "fold": known.fold, "group": known.group}
            columns |= {column: str(value) for column, value in rest.items() if value is not None}
        clips.append(PackItem(str(file), prefix + name, columns))
    return clips


def _of_manifest(file: Path) -> Iterator[PackItem]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8") from None
    if file.suffix.lower() == ".txt":
        rows = [{"filename": line.strip()} for line in lines]
        column = "filename"
    else:
        reader = csv.DictReader(lines, delimiter=_DELIMITERS[file.suffix.lower()])
        header = list(reader.fieldnames or [])
        column = next((name for name in header if name.strip().lower() in _PATH_COLUMNS), "")
        if not column:
            raise UserError(f"{file} has no column filename; its first line says {', '.join(header) or 'nothing'}")
        rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
    rows = [row for row in rows if row[column].strip()]
    if not rows:
        raise UserError(f"{file} names no files; write a path a line, or a column filename")
    for row in rows:
        text = row.pop(column).strip()
        name = re.sub(r"^([A-Za-z]:)?(\.{0,2}/)*", "", Path(text).as_posix())
        yield PackItem(str(file.parent / text), name, {k: v.strip() for k, v in row.items() if k not in _MEASURED})
