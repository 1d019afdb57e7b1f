"""The labelled clips of all sources with their annotations, before the set is split (splits.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from src.audio.levels import describe_oddities
from src.config.settings import SourceConfig
from src.data.cache import CachedSource, cache_bytes
from src.data.overlap import MAX_COMPARED, content_digest
from src.data.sources.annotations import Annotation, in_order
from src.data.sources.folder_labels import empty_class_folders
from src.data.sources.hub import HuggingFaceSource, stream_to_disk
from src.data.sources.open import open_source
from src.data.sources.source import Source
from src.errors import UserError


@dataclass(frozen=True)
class Clip:
    """number: index in the source. split: train, valid or test, if given. digest: identifies the content."""

    source: Source
    number: int
    annotation: Annotation
    split: str | None
    digest: str

    @property
    def key(self) -> str:
        return self.source.path(self.number)

    @property
    def seconds(self) -> float:
        return float(self.source.seconds[self.number])


@dataclass(frozen=True)
class LabelledClips:
    """multi: whether a clip may have several classes. bad: (path, reason) of clips that cannot be read. left_out: the
    same of clips without a label, or with labels that contradict each other. notes: a sentence for everything that was
    created, changed or looks wrong."""

    clips: list[Clip]
    class_names: list[str]
    multi: bool
    bad: list[tuple[str, str]]
    notes: list[str]
    left_out: list[tuple[str, str]] = field(default_factory=list)

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
    """Open the sources and collect their labelled clips.

    Args:
        multi: whether a clip may have several classes; None infers it from the labels.
        cache_gigabytes: a source that fits is decoded once into the 16-bit cache; a streamed source is read up to it.

    Raises:
        UserError: no labels, fewer than two classes, several labels of a clip with `multi=False`.
    """
    given: list[tuple[SourceConfig, str | None]] = [(config, None) for config in train]
    given += [(config, split) for config, split in ((valid, "valid"), (test, "test")) if config is not None]
    clips: list[Clip] = []
    bad: list[tuple[str, str]] = []
    notes: list[str] = []
    left_out: list[tuple[str, str]] = []
    sources = []  # that may have splits of their own
    for config, split in given:
        source = _open(config, cache_gigabytes, notes)
        sources += [source] if split is None else []
        bad += source.bad_paths
        labelled, unlabelled = _labelled_clips(source, config, split, notes)
        clips += labelled
        left_out += unlabelled
    own = [clip for clip in clips if clip.source in sources]
    unsplit = [clip for clip in own if clip.split is None]
    if 0 < len(unsplit) < len(own):
        notes.append(f"{len(unsplit)} clips have no split, others have one: they are train, such as {unsplit[0].key}")
    clips = _without_contradictions(clips, left_out, notes)
    class_names = in_order(label for clip in clips for label in clip.annotation.labels)
    if len(class_names) < 2:
        why = f"; {len(left_out)} clips are left out, such as {left_out[0][0]} ({left_out[0][1]})" if left_out else ""
        raise UserError(f"the set has {len(class_names)} class ({', '.join(class_names)}); it needs two or more{why}")
    several = [clip for clip in clips if len(clip.annotation.labels) > 1]
    if multi is False and several:
        raise UserError(f"{several[0].key} has several labels; set classify.task=multi, or give each clip one")
    return LabelledClips(clips, class_names, bool(several) if multi is None else multi, bad, notes, left_out)


def _labelled_clips(
    source: Source, config: SourceConfig, split: str | None, notes: list[str]
) -> tuple[list[Clip], list[tuple[str, str]]]:
    """The clips of a source that have a label, and (path, reason) of the others; remarks are added to `notes`."""
    annotations = [source.annotation(i) for i in range(len(source))]
    if not any(annotations):
        raise UserError(
            f"{config.path} has no labels; it needs class folders, a labels.csv (filename,label), label_column, or in "
            "shards a .cls or .json (label) beside each clip (folders called train, valid and test are splits, not "
            "classes)"
        )
    unlabelled = [(source.path(i), "no label") for i, annotation in enumerate(annotations) if annotation is None]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} clips of {config.path} have no label and are left out, such as {unlabelled[0][0]}"
        )
    compared = len(source) <= MAX_COMPARED
    if not compared:
        notes.append(f"{config.path} has more than {MAX_COMPARED} clips: it is not searched for duplicates")

    def digest(i: int) -> str:
        return content_digest(source.read(i)).hex() if compared else source.path(i)

    return [Clip(source, i, a, split or a.split, digest(i)) for i, a in enumerate(annotations) if a], unlabelled


def _without_contradictions(clips: list[Clip], left_out: list[tuple[str, str]], notes: list[str]) -> list[Clip]:
    """Without files that are in the set more than once, under different labels: they are added to `left_out`."""
    first: dict[str, Clip] = {}
    twice: dict[str, Clip] = {}  # by digest, a clip that contradicts the first
    for clip in clips:
        before = first.setdefault(clip.digest, clip)
        if set(before.annotation.labels) != set(clip.annotation.labels):
            twice.setdefault(clip.digest, clip)
    if twice:
        one = next(iter(twice.values()))
        other = first[one.digest]
        notes.append(
            f"{len(twice)} files are in the set under different labels and are left out, such as {other.key} "
            f"({';'.join(other.annotation.labels)}), which is {one.key} ({';'.join(one.annotation.labels)})"
        )
    left_out += [(clip.key, "the same file has other labels elsewhere") for clip in clips if clip.digest in twice]
    return [clip for clip in clips if clip.digest not in twice]


def _open(config: SourceConfig, cache_gigabytes: float, notes: list[str]) -> Source:
    if config.streaming:
        dataset, complete = stream_to_disk(config, cache_gigabytes * 1e9)
        if not complete:
            notes.append(
                f"only the first {len(dataset)} clips of {config.path} were read: they fill "
                f"data.cache_gigabytes={cache_gigabytes:g}"
            )
        source: Source = HuggingFaceSource(replace(config, streaming=False), dataset)
    else:
        source = open_source(config)
    if config.kind == "folder":
        empty = empty_class_folders(Path(config.path).expanduser(), [source.name(i) for i in range(len(source))])
        if empty:
            notes.append(f"the folders {', '.join(empty)} of {config.path} hold no audio: they are not classes")
    decoded = CachedSource(source, store=cache_bytes(source) <= cache_gigabytes * 1e9)
    notes += describe_oddities(decoded.odd)
    return decoded
