"""Audio files, and folders of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.sources.annotations import in_order
from src.data.sources.folder_labels import find_annotations
from src.data.sources.source import Source
from src.data.sources.walk import find_audio
from src.errors import UserError


class FileSource(Source):
    """Audio files.

    Args:
        root: names are relative to it; None uses the paths as given. unreadable: (path, reason) of what could not be
            listed.
    """

    def __init__(
        self, files: list[Path], root: Path | None = None, unreadable: Sequence[tuple[Path, str]] = ()
    ) -> None:
        self._files, self._root = [str(path) for path in files], root  # a Path takes five times the memory
        self._root_length = 0 if root in (None, Path()) else len(os.path.join(root, ""))  # noqa: PTH118
        stats = [os.stat(path) for path in self._files]  # noqa: PTH116, half the time
        self.sizes = np.array([s.st_size for s in stats], dtype=np.int64)
        self._index(
            [
                f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}"  # noqa: PTH100, asks the disk nothing
                for path, stat in zip(self._files, stats, strict=True)
            ],
            str(root.resolve()) if root else "\n".join(map(os.path.abspath, self._files)),
        )
        self._not_listed = [(self._relative(path), as_text(path), reason) for path, reason in unreadable]

    def _read(self, i: int) -> str:
        return self._files[i]

    def _name(self, i: int) -> str:
        return as_text(self._files[i][self._root_length :])

    def _relative(self, path: Path) -> str:
        return as_text(path.relative_to(self._root) if self._root else path)

    def _path(self, i: int) -> str:
        return os.fsencode(self._files[i]).decode(errors="replace")


class FolderSource(FileSource):
    """All audio files under a folder, sorted by path; hidden files and folders are skipped.

    Labels come from the folder's table, from label files or from class folders (`src.data.sources.folder_labels`). They
    are read when they are first asked for: a table that cannot be used hinders nobody who needs no labels.
    """

    _labelled: Path | None = None  # the folder whose labels have not been read

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(
                f"there is no folder {path} (looked in {Path.cwd()}); set the source's path to a folder of audio"
            )
        found = find_audio(root)
        super().__init__(found.files, root, found.unreadable)
        self._labelled = root

    def _load_annotations(self) -> None:
        if self._labelled is None:
            return
        root, self._labelled = self._labelled, None
        names = [self._name(i) for i in range(len(self._files))]
        annotations = find_annotations(root, names)
        class_names = in_order(label for each in annotations.values() for label in each.labels)
        self._annotate(class_names, [annotations.get(name) for name in names])


def as_text(path: Path | str) -> str:
    """The path as valid text; file names need not be UTF-8."""
    return os.fsencode(path).decode(errors="replace")
