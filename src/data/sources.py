"""Indexable collections of encoded clips: a folder of files, tar shards, a Hugging Face dataset.

A source is read by number: `len(source)`, `source.read(i)` (bytes or a path), `source.name(i)`, `source.path(i)`, and
`source.seconds`, known from the headers before anything is decoded. Clips whose header is unreadable stand in
`source.bad` and are not counted.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.config import SourceConfig
from src.data.annotations import Annotation, find_annotations
from src.data.decode import SUFFIXES, AudioError, Encoded, decode
from src.data.hub import clip_name, encoded_clip, load_hub, read_annotations
from src.data.index import digest, scan_headers
from src.data.shard_index import open_shard_index
from src.data.storage import expand_shards, read_range
from src.errors import UserError

_PASSED_OVER_SECONDS = 60.0
_MOST_WAITED_FOR = 3  # shards; where more fail, all of the storage does, and waiting for each would stall the run


class Source:
    """Base: numbers of readable clips onto numbers of all clips. Subclasses give `_read`, `_name` and the scan's keys.

    Attributes:
        seconds: (n,) of each clip. bad: (name, reason) of clips left out. fingerprint: identifies content and order.
        class_names: of the labels; empty if there are none. shards: tar files, None if there are none.
    """

    class_names: Sequence[str] = ()
    _annotations: Sequence[Annotation | None] = ()  # of all clips; empty if there are none
    shards: int | None = None
    missing: Sequence[tuple[str, str]] = ()  # (shard, reason) of shards that could not be opened
    _kept: Sequence[int] | np.ndarray  # numbers of the readable clips among all

    def _index(self, keys: list[str], place: str) -> None:
        """`keys` and `place`: as `scan_headers`."""
        self.fingerprint = digest(keys)
        headers = scan_headers(self._read, keys, place)
        self._kept = np.flatnonzero([not reason for reason in headers.reason])
        self.seconds: np.ndarray = headers.seconds[self._kept]
        unreadable = [i for i, reason in enumerate(headers.reason) if reason]
        self.bad = [(self._name(i), headers.reason[i]) for i in unreadable]
        self.bad_paths = [(self._path(i), headers.reason[i]) for i in unreadable]

    def __len__(self) -> int:
        return len(self._kept)

    def name(self, i: int) -> str:
        return self._name(int(self._kept[i]))

    def path(self, i: int) -> str:
        """Where the clip lies, as far as one string says it: the file, `SHARD.tar/member`, `DATASET#row`."""
        return self._path(int(self._kept[i]))

    def read(self, i: int) -> Encoded:
        """The encoded clip."""
        return self._read(int(self._kept[i]))

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Samples (T,) at 16 kHz, as `decode`."""
        return decode(self.read(i), start_seconds, seconds)

    def _annotate(self, class_names: Sequence[str], annotations: Sequence[Annotation | None]) -> None:
        self.class_names, self._annotations = class_names, annotations
        self._numbers = {name: number for number, name in enumerate(class_names)}

    def labels(self, i: int) -> tuple[int, ...]:
        """Places of the clip's classes in `class_names`."""
        annotation = self.annotation(i)
        return tuple(self._numbers[label] for label in annotation.labels) if annotation else ()

    def annotation(self, i: int) -> Annotation | None:
        """Labels, split, fold, group and events of a clip; None for a clip without labels."""
        return self._annotations[int(self._kept[i])] if self._annotations else None

    def label(self, i: int) -> int:
        """Place of the clip's class in `class_names`; -1 for a clip that has none.

        Raises:
            UserError: the source has no labels, or several of a clip.
        """
        if not self.class_names:
            raise UserError(
                "this source has no labels; set label_column to a column of a Hugging Face dataset, "
                "or put a labels.csv or class folders into the folder"
            )
        labels = self.labels(i)
        if len(labels) > 1:
            raise UserError(f"{self.name(i)} has {len(labels)} labels; this needs one a clip")
        return labels[0] if labels else -1

    def _read(self, i: int) -> Encoded:
        raise NotImplementedError

    def _name(self, i: int) -> str:
        raise NotImplementedError

    def _path(self, i: int) -> str:
        raise NotImplementedError


class FileSource(Source):
    """Audio files. root: what their names are relative to; None names them as they are given."""

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
        return _text(self._files[i].relative_to(self._root) if self._root else self._files[i])

    def _path(self, i: int) -> str:
        return _text(self._files[i])


class FolderSource(FileSource):
    """All audio files under a folder, in the order of their paths; names that start with a dot are passed over.

    Labels are those of the folder's labels.csv, else of its class folders (`src.data.annotations`).
    """

    def __init__(self, path: str) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(
                f"there is no folder {path} (looked in {Path.cwd()}); set the source's path to a folder of audio"
            )
        found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))
        if not files:
            raise UserError(f"{path} holds no audio files ({', '.join(SUFFIXES)})")
        super().__init__(files, root)
        names = [self._name(i) for i in range(len(files))]
        annotations = find_annotations(root, names)
        class_names = sorted({label for each in annotations.values() for label in each.labels})
        self._annotate(class_names, [annotations.get(name) for name in names])


class ShardSource(Source):
    """Audio members of WebDataset-style tar files, read by offset; local, or anything fsspec opens.

    A shard that cannot be read while training is passed over: its clips are unreadable, and it is tried again after
    a minute.

    Attributes:
        missing: (shard, reason) of those left out because they could not be opened; they stand in `bad` too.
    """

    def __init__(self, path: str) -> None:
        self._table = open_shard_index(expand_shards(path))
        if not len(self._table) and not self._table.bad:
            raise UserError(f"the shards {path} hold no audio files ({', '.join(SUFFIXES)})")
        self.shards, self.missing = len(self._table.shards), self._table.missing
        self.fingerprint = self._table.fingerprint
        self._kept = range(len(self._table))
        self.seconds = self._table.seconds if len(self._table) else np.zeros(0)
        bad = self._table.bad
        self.bad = [*self.missing, *((f"{Path(shard).name}/{name}", reason) for shard, name, reason in bad)]
        self.bad_paths = [*self.missing, *((f"{shard}/{name}", reason) for shard, name, reason in bad)]
        self._passed_over: dict[str, tuple[float, str]] = {}  # shard: until when, and why

    def _read(self, i: int) -> bytes:
        shard = self._table.shard(i)
        until, reason = self._passed_over.get(shard, (0.0, ""))
        if time.monotonic() >= until:
            try:
                return read_range(shard, *self._table.place(i), patient=len(self._passed_over) < _MOST_WAITED_FOR)
            except OSError as error:
                reason = f"the shard {shard} cannot be read ({error})"
                self._passed_over[shard] = time.monotonic() + _PASSED_OVER_SECONDS, reason
        raise AudioError(reason)

    def _name(self, i: int) -> str:
        return f"{Path(self._table.shard(i)).name}/{self._table.name(i)}"

    def _path(self, i: int) -> str:
        return f"{self._table.shard(i)}/{self._table.name(i)}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "seconds": None}  # a memory map would travel as a copy

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.seconds = self._table.seconds if len(self._table) else np.zeros(0)


class HuggingFaceSource(Source):
    """A map-style dataset whose audio column is taken undecoded.

    Args:
        dataset: already loaded; None loads what the config says.
    """

    def __init__(self, config: SourceConfig, dataset: Any = None) -> None:
        self._place, self._audio_column = config.path, config.audio_column
        dataset = load_hub(config) if dataset is None else dataset
        if config.label_column is not None:
            self._annotate(*read_annotations(dataset, config))
        if dataset.column_names != [config.audio_column]:
            dataset = dataset.select_columns([config.audio_column])
        self._dataset = dataset
        self._index([f"{dataset._fingerprint} {i}" for i in range(len(dataset))], dataset._fingerprint)

    def _read(self, i: int) -> Encoded:
        return encoded_clip(self._dataset[i][self._audio_column])

    def _name(self, i: int) -> str:
        return clip_name(self._dataset[i][self._audio_column], i)

    def _path(self, i: int) -> str:
        return f"{self._place}#{self._name(i)}"


def open_source(config: SourceConfig) -> Source:
    """The map-style source of a config.

    Raises:
        UserError: nothing there, no audio in it, no such split or column; a streamed source, which has no numbers.
    """
    if config.streaming:
        raise UserError(
            f"{config.path} cannot be streamed here, only data.sources of kind huggingface can; set streaming to false"
        )
    if config.kind == "folder":
        return FolderSource(config.path)
    if config.kind == "shards":
        return ShardSource(config.path)
    return HuggingFaceSource(config)


def _text(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")  # names need not be UTF-8
