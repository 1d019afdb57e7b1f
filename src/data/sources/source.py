"""Indexable collections of encoded clips: the base of folders, tar shards and Hugging Face datasets.

A source is indexed: `len(source)`, `source.read(i)` (bytes or a path), `source.name(i)`, `source.path(i)`, and
`source.seconds`, known from the headers before anything is decoded. Clips with an unreadable header are listed in
`source.bad` and not counted.
"""

from collections.abc import Sequence

import numpy as np

from src.audio.decode import AudioError, Encoded, decode, decode_ranges
from src.data.sources.annotations import Annotation
from src.data.sources.index import digest, scan_headers
from src.errors import UserError


class Source:
    """Base class: maps indices of readable clips to indices of all clips. Subclasses implement `_read`, `_name` and
    `_path`, and usually call `_index` with the keys of their clips.

    Attributes:
        seconds: (n,) length of each clip. bad: (name, reason) of clips left out. bad_paths: the same by path.
        fingerprint: identifies content and order.
        shards: number of tar files, None if there are none.
    """

    _class_names: Sequence[str] = ()
    _annotations: Sequence[Annotation | None] = ()  # of all clips; empty if there are none
    shards: int | None = None
    missing: Sequence[tuple[str, str]] = ()  # (shard, reason) of shards that could not be opened
    _kept: Sequence[int] | np.ndarray  # indices of the readable clips among all

    def _index(self, keys: list[str], location: str) -> None:
        """Scan the headers. `keys` and `location`: as `scan_headers`."""
        self.fingerprint = digest(keys)
        headers = scan_headers(self._read, keys, location)
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
        """The clip's location: the file, `SHARD.tar/member` or `DATASET:SPLIT#row`."""
        return self._path(int(self._kept[i]))

    def read(self, i: int) -> Encoded:
        """The encoded clip."""
        return self._read(int(self._kept[i]))

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Samples (T,), fp32, at 16 kHz, as `decode`."""
        return decode(self.read(i), start_seconds, seconds)

    def crops(self, i: int, ranges: Sequence[tuple[float, float]]) -> list[np.ndarray | AudioError]:
        """`waveform` of each (start_seconds, seconds), in ascending order, or its error; the clip is opened once."""
        try:
            return decode_ranges(self.read(i), ranges)
        except AudioError as error:
            return [error] * len(ranges)

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the labels; empty if there are none."""
        self._load_annotations()
        return self._class_names

    def _load_annotations(self) -> None:
        """Called before labels are used; a source that reads them late overrides it and calls `_annotate`."""

    def _annotate(self, class_names: Sequence[str], annotations: Sequence[Annotation | None]) -> None:
        self._class_names, self._annotations = class_names, annotations
        self._numbers = {name: number for number, name in enumerate(class_names)}

    def labels(self, i: int) -> tuple[int, ...]:
        """Indices of the clip's classes in `class_names`."""
        annotation = self.annotation(i)
        return tuple(self._numbers[label] for label in annotation.labels) if annotation else ()

    def annotation(self, i: int) -> Annotation | None:
        """Labels, split, fold, group and events of a clip; None if it has no labels."""
        self._load_annotations()
        return self._annotations[int(self._kept[i])] if self._annotations else None

    def label(self, i: int) -> int:
        """Index of the clip's class in `class_names`; -1 if it has none.

        Raises:
            UserError: the source has no labels, or the clip has several.
        """
        if not self.class_names:
            raise UserError(
                "this source has no labels; set label_column to a column of a Hugging Face dataset, "
                "or add a labels.csv or class folders to the folder"
            )
        labels = self.labels(i)
        if len(labels) > 1:
            raise UserError(f"{self.name(i)} has {len(labels)} labels; this needs one label per clip")
        return labels[0] if labels else -1

    def _read(self, i: int) -> Encoded:
        raise NotImplementedError

    def _name(self, i: int) -> str:
        raise NotImplementedError

    def _path(self, i: int) -> str:
        raise NotImplementedError
