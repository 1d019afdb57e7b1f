"""What goes into shards: audio files from folders, lists and manifests, their member names and their labels."""

import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fsspec

from src.audio.decode import SUFFIXES
from src.data.sources.annotations import Annotation, labels_cell
from src.data.sources.folder import as_text
from src.data.sources.folder_labels import find_annotations
from src.data.sources.label_table import FILE_COLUMNS, LABEL_COLUMNS
from src.data.sources.packed_labels import packed_columns
from src.data.sources.storage import file_stamp, local_path, open_filesystem, retry
from src.data.sources.table import read_table, read_text
from src.data.sources.walk import find_audio, is_hidden_member
from src.errors import UserError

_PATH_COLUMNS = (*FILE_COLUMNS, "audio")
_MEASURED = {
    "name",
    "offset",
    "size",
    "seconds",
    "sample_rate",
    "channels",
    "checksum",
}  # measured by the index
_MANIFESTS = (".csv", ".tsv", ".txt")


class PackItem(NamedTuple):
    """path: of the file, or a URL. name: of the tar member. columns: labels and other columns of the manifest.
    listed: size and time of a URL, as its storage lists them."""

    path: str
    name: str
    columns: dict[str, str]
    listed: tuple[int, str] | None = None

    def size_and_time(self) -> tuple[int, int | str]:
        """In bytes; the time of its last change. Of a file that is not there, 0: it is skipped, with the reason, when
        its shard is written."""
        if self.listed is not None:
            return self.listed
        try:
            stat = Path(self.path).stat()
        except OSError:
            return 0, 0
        return stat.st_size, stat.st_mtime_ns


def list_clips(inputs: Sequence[str]) -> list[PackItem]:
    """All clips, in input order; those of a folder sorted by path.

    A name is the path relative to the input folder, prefixed with the folder's name if there are several inputs.
    WebDataset readers group members by the name up to its first dot: other dots become `_`, and a duplicate name gets
    a number.

    Args:
        inputs: audio files; folders, searched recursively, whose labels.csv or class folders are kept, here or at any
            URL that fsspec opens; manifests: .csv or .tsv with a column `filename`, whose other columns are kept, or
            .txt with one path per line. Paths in a manifest are relative to it.

    Raises:
        UserError: no such input, no audio in it, an invalid manifest.
    """
    several = len(inputs) > 1
    clips = []
    for text in inputs:
        local = local_path(text)
        clips += _of_url(text, several) if local is None else _of_input(local, several)
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
    if path.suffix.lower() in _MANIFESTS:
        return list(_of_manifest(path))
    raise UserError(
        f"{path} has no audio suffix ({', '.join(SUFFIXES)}) and is neither a folder nor a manifest (.csv, .tsv, .txt)"
    )


def _of_url(url: str, several: bool) -> list[PackItem]:
    filesystem, root = open_filesystem(url)
    try:
        found = retry(lambda: filesystem.find(root, detail=True), True)
    except OSError as error:
        raise UserError(f"{url} cannot be listed ({error})") from None
    if not found:
        raise UserError(f"there is no file or folder {url}")
    is_file = list(found) == [root]
    top = posixpath.dirname(root) if is_file else root.rstrip("/")
    names = {path: path.removeprefix(top).lstrip("/") for path in sorted(found)}
    audio = {
        path: name for path, name in names.items() if name.lower().endswith(SUFFIXES) and not is_hidden_member(name)
    }
    if not audio:
        raise UserError(f"{url} holds no audio files ({', '.join(SUFFIXES)}); of manifests only local ones are read")
    annotations = {} if is_file else _annotations_at(filesystem, top, audio.values(), names.values())
    prefix = f"{posixpath.basename(top)}/" if several and not is_file else ""
    return [
        PackItem(
            filesystem.unstrip_protocol(path),
            prefix + name,
            packed_columns(annotations[name]) if name in annotations else {},
            (int(found[path].get("size") or 0), file_stamp(found[path])),
        )
        for path, name in audio.items()
    ]


def _annotations_at(
    filesystem: fsspec.AbstractFileSystem, root: str, audio: Iterable[str], names: Iterable[str]
) -> dict[str, Annotation]:
    """Of a folder at a URL: from its table, which is copied here, or its class folders."""
    tables = [name for name in names if "/" not in name and name.lower().endswith((".csv", ".tsv"))]
    with tempfile.TemporaryDirectory() as folder:
        for name in tables:
            Path(folder, name).write_bytes(retry(partial(filesystem.cat_file, f"{root}/{name}"), True))
        return find_annotations(Path(folder), list(audio))


def _of_folder(root: Path, prefix: str) -> list[PackItem]:
    found = find_audio(root)
    files = [*found.files, *(path for path, _ in found.unreadable)]  # those are skipped, with the reason, when packed
    names = [Path(as_text(file.relative_to(root))).as_posix() for file in files]
    annotations = find_annotations(root, names)
    return [
        PackItem(str(file), prefix + name, packed_columns(annotations[name]) if name in annotations else {})
        for file, name in zip(files, names, strict=True)
    ]


def _of_manifest(file: Path) -> Iterator[PackItem]:
    rows = _list_rows(file) if file.suffix.lower() == ".txt" else _table_rows(file)
    if not rows:
        raise UserError(f"{file} lists no files; write one path per line, or a column filename")
    for line, text, columns in rows:
        found = text if (file.parent / text).exists() or "\\" not in text else text.replace("\\", "/")
        name = _member_name(found)
        if name is None:
            raise UserError(f"{file}, line {line}: {text} climbs out of its own folders; write the path without ..")
        yield PackItem(str(file.parent / found), name, columns)


def _list_rows(file: Path) -> list[tuple[int, str, dict[str, str]]]:
    """(line, path, no columns) of a list of files."""
    lines = re.split(r"\r\n|\r|\n", read_text(file))
    return [(number, text.strip(), {}) for number, text in enumerate(lines, 1) if text.strip()]


def _table_rows(file: Path) -> list[tuple[int, str, dict[str, str]]]:
    """(line, path, other columns)."""
    table = read_table(file)
    lowered = [name.lower() for name in table.header]
    place = next((lowered.index(name) for name in _PATH_COLUMNS if name in lowered), None)
    if place is None:
        raise UserError(f"{file} has no column filename; its header is {', '.join(table.header) or 'empty'}")
    if "onset" in lowered:
        raise UserError(
            f"{file} has events, which a manifest cannot hold; pack the folder, with this as its labels.csv"
        )
    kept = [i for i, name in enumerate(table.header) if name and i != place and name not in _MEASURED]
    separated = [i for i in kept if table.delimiter == ";" and lowered[i] in LABEL_COLUMNS]
    return [
        (
            line,
            cells[place],
            {table.header[i]: labels_cell(cells[i].split("|")) if i in separated else cells[i] for i in kept},
        )
        for line, cells in table.rows
        if cells[place]
    ]


def _member_name(path: str) -> str | None:
    """The path without drive, leading `/` and `../`, and `..` resolved; None if `..` climbs out of what is left."""
    name = posixpath.normpath(re.sub(r"^([A-Za-z]:)?(\.{0,2}/)*", "", Path(path).as_posix()))
    return None if name == "." or name.split("/")[0] == ".." else name
