"""Audio files, and folders of them."""

import os
from pathlib import Path

from src.audio.decode import SUFFIXES
from src.data.sources.annotations import find_annotations
from src.data.sources.source import Source
from src.errors import UserError


class FileSource(Source):
    """Audio files. root: names are relative to it; None uses the paths as given."""

    def __init__(self, files: list[Path], root: Path | None = None) -> None:
        self._files, self._root = files, root
        stats = [p.stat() for p in files]
        self._index(
            [f"{p.resolve()} {s.st_size} {s.st_mtime_ns}" for p, s in zip(files, stats, strict=True)],
            str(root.resolve()) if root else "\n".join(str(p.resolve()) for p in files),
        )

    def _read(self, i: int) -> Path:
        return self._files[i]

    def _name(self, i: int) -> str:
        return as_text(self._files[i].relative_to(self._root) if self._root else self._files[i])

    def _path(self, i: int) -> str:
        return as_text(self._files[i])


class FolderSource(FileSource):
    """All audio files under a folder, sorted by path; hidden files and folders are skipped.

    Labels come from the folder's labels.csv, or else from its class folders (`src.data.sources.annotations`).
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(
                f"there is no folder {path} (looked in {Path.cwd()}); set the source's path to a folder of audio"
            )
        files = find_audio(root)
        super().__init__(files, root)
        names = [self._name(i) for i in range(len(files))]
        annotations = find_annotations(root, names)
        class_names = sorted({label for each in annotations.values() for label in each.labels})
        self._annotate(class_names, [annotations.get(name) for name in names])


def find_audio(root: Path) -> list[Path]:
    """Audio files under a folder, sorted by path; hidden files and folders are skipped.

    Raises:
        UserError: there are none.
    """
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not files:
        raise UserError(f"{root} holds no audio files ({', '.join(SUFFIXES)})")
    return files


def as_text(path: Path) -> str:
    """The path as valid text; file names need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")
