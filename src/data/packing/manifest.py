"""What goes into shards: audio files from folders, lists and manifests, their member names and their labels."""

import csv
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.audio.decode import SUFFIXES
from src.data.sources.annotations import find_annotations
from src.data.sources.folder import as_text
from src.data.sources.walk import find_audio
from src.errors import UserError

_PATH_COLUMNS = ("filename", "file_name", "file", "path", "fname", "audio")
_MEASURED = {
    "name",
    "offset",
    "size",
    "seconds",
    "sample_rate",
    "channels",
    "checksum",
}  # measured by the index
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class PackItem(NamedTuple):
    """path: of the file. name: of the tar member. columns: labels and other columns of the manifest."""

    path: str
    name: str
    columns: dict[str, str]


def list_clips(inputs: Sequence[str]) -> list[PackItem]:
    """All clips, in input order; those of a folder sorted by path.

    A name is the path relative to the input folder, prefixed with the folder's name if there are several inputs.
    WebDataset readers group members by the name up to its first dot: other dots become `_`, and a duplicate name gets
    a number.

    Args:
        inputs: audio files; folders, searched recursively, whose labels.csv or class folders are kept; manifests:
            .csv or .tsv with a column `filename`, whose other columns are kept, or .txt with one path per line. Paths
            in a manifest are relative to it.

    Raises:
        UserError: no such input, no audio in it, an invalid manifest.
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
        f"{path} has no audio suffix ({', '.join(SUFFIXES)}) and is neither a folder nor a manifest (.csv, .tsv, .txt)"
    )


def _of_folder(root: Path, prefix: str) -> list[PackItem]:
    found = find_audio(root)
    files = [*found.files, *(path for path, _ in found.unreadable)]  # those are skipped, with the reason, when packed
    names = [Path(as_text(file.relative_to(root))).as_posix() for file in files]
    annotations = find_annotations(root, names)
    clips = []
    for file, name in zip(files, names, strict=True):
        columns = {}
        if (annotation := annotations.get(name)) is not None:
            columns = {"label": ";".join(annotation.labels)}
            rest = {"split": annotation.split, "fold": annotation.fold, "group": annotation.group}
            columns |= {column: str(value) for column, value in rest.items() if value is not None}
        clips.append(PackItem(str(file), prefix + name, columns))
    return clips


def _of_manifest(file: Path) -> Iterator[PackItem]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8") from None
    if file.suffix.lower() == ".txt":
        rows = [(number, {"filename": text}) for number, text in enumerate(lines, 1)]
        column = "filename"
    else:
        reader = csv.DictReader(lines, delimiter=_DELIMITERS[file.suffix.lower()])
        header = list(reader.fieldnames or [])
        column = next((name for name in header if name.strip().lower() in _PATH_COLUMNS), "")
        if not column:
            raise UserError(f"{file} has no column filename; its header is {', '.join(header) or 'empty'}")
        rows = [(reader.line_num, {name: value or "" for name, value in row.items() if name}) for row in reader]
    rows = [(line, row) for line, row in rows if row[column].strip()]
    if not rows:
        raise UserError(f"{file} lists no files; write one path per line, or a column filename")
    for line, row in rows:
        text = row.pop(column).strip()
        name = _member_name(text)
        if name is None:
            raise UserError(f"{file}, line {line}: {text} climbs out of its own folders; write the path without ..")
        yield PackItem(str(file.parent / text), name, {k: v.strip() for k, v in row.items() if k not in _MEASURED})


def _member_name(path: str) -> str | None:
    """The path without drive, leading `/` and `../`, and `..` resolved; None if `..` climbs out of what is left."""
    name = posixpath.normpath(re.sub(r"^([A-Za-z]:)?(\.{0,2}/)*", "", Path(path).as_posix()))
    return None if name == "." or name.split("/")[0] == ".." else name
