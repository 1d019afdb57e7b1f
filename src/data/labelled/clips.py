"""The labeled clips of some sources and what is known about them, before they are split (splits.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.config.settings import SourceConfig
from src.data.cache import CachedSource, cache_bytes
from src.data.overlap import MAX_COMPARED, content_digest
from src.data.sources.annotations import Annotation, empty_class_folders
from src.data.sources.hub import HuggingFaceSource, stream_to_disk
from src.data.sources.open import open_source
from src.data.sources.source import Source
from src.errors import UserError


@dataclass(frozen=True)
class Clip:
    """number: in the source. split: train, valid or test where that is given. digest: stands for the content."""

    source: Source
    number: int
    annotation: Annotation
    split: str | None
    digest: str

    @property
    def key(self) -> str:
        return self.source.path(self.number)


@dataclass(frozen=True)
class LabelledClips:
    """multi: whether a clip may have several classes. bad: (path, reason) of clips left out.
    notes: a sentence for each thing that was made, changed or looks wrong."""

    clips: list[Clip]
    class_names: list[str]
    multi: bool
    bad: list[tuple[str, str]]
    notes: list[str]

    @property
    def targets(self) -> np.ndarray:
        """(n, C) fp32, 1 where a clip has the class."""
        column = {name: number for number, name in enumerate(self.class_names)}
        targets = np.zeros((len(self.clips), len(self.class_names)), np.float32)
        for row, clip in enumerate(self.clips):
            targets[row, [column[label] for label in clip.annotation.labels]] = 1
        return targets


def read_labelled(
    train: Sequence[SourceConfig],
    valid: SourceConfig | None,
    test: SourceConfig | None,
    multi: bool | None = None,
    cache_gigabytes: float = 4.0,
) -> LabelledClips:
    """Open the sources and collect their labeled clips.

    Args:
        multi: several classes per clip; None detects it.
        cache_gigabytes: a source that fits is decoded once into the 16-bit cache; a stream is read up to this size.

    Raises:
        UserError: no labels, fewer than two classes, several labels where one is wanted.
    """
    given: list[tuple[SourceConfig, str | None]] = [(config, None) for config in train]
    given += [(config, split) for config, split in ((valid, "valid"), (test, "test")) if config is not None]
    clips: list[Clip] = []
    bad: list[tuple[str, str]] = []
    notes: list[str] = []
    for config, split in given:
        source = _open(config, cache_gigabytes, notes)
        bad += source.bad_paths
        clips += _labelled_clips(source, config, split, notes)
    class_names = sorted({label for clip in clips for label in clip.annotation.labels})
    if len(class_names) < 2:
        raise UserError(f"the set has {len(class_names)} class ({', '.join(class_names)}); it takes two or more")
    several = [clip for clip in clips if len(clip.annotation.labels) > 1]
    if multi is False and several:
        raise UserError(f"{several[0].key} has several labels; set classify.task=multi, or give each clip one")
    return LabelledClips(clips, class_names, bool(several) if multi is None else multi, bad, notes)


def _labelled_clips(source: Source, config: SourceConfig, split: str | None, notes: list[str]) -> list[Clip]:
    """Those of a source that have a label; what is noticed on the way joins `notes`."""
    annotations = [source.annotation(i) for i in range(len(source))]
    if not any(annotations):
        raise UserError(
            f"{config.path} has no labels; it needs class folders, a labels.csv (filename,label), or label_column"
        )
    if unlabelled := sum(annotation is None for annotation in annotations):
        notes.append(f"{unlabelled} clips of {config.path} have no label and are left out")
    compared = len(source) <= MAX_COMPARED
    if not compared:
        notes.append(f"{config.path} has more than {MAX_COMPARED} clips: they are not compared for duplicates")

    def digest(i: int) -> str:
        return content_digest(source.read(i)).hex() if compared else source.path(i)

    return [Clip(source, i, a, split or a.split, digest(i)) for i, a in enumerate(annotations) if a]


def _open(config: SourceConfig, cache_gigabytes: float, notes: list[str]) -> Source:
    if config.streaming:
        dataset, whole = stream_to_disk(config, cache_gigabytes * 1e9)
        if not whole:
            notes.append(
                f"{len(dataset)} clips of {config.path} were read, then data.cache_gigabytes={cache_gigabytes:g} "
                "was full"
            )
        source: Source = HuggingFaceSource(replace(config, streaming=False), dataset)
    else:
        source = open_source(config)
    if config.kind == "folder":
        empty = empty_class_folders(Path(config.path).expanduser(), [source.name(i) for i in range(len(source))])
        if empty:
            notes.append(f"the folders {', '.join(empty)} of {config.path} hold no audio: they are no classes")
    return CachedSource(source) if cache_bytes(source) <= cache_gigabytes * 1e9 else source
