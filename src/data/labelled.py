"""A labelled set in three parts, train, valid and test: read as it is split, split where it is not.

PARTS of a set come from separate sources (splits of a dataset), from its `split` or `fold` column, or are made:
stratified by class, groups and equal files kept together, fixed by the seed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.config import SourceConfig
from src.data.annotations import Annotation
from src.data.cache import CachedSource, cache_bytes
from src.data.overlap import content_digest
from src.data.sources import Source, open_source
from src.data.splits import assign_parts
from src.errors import UserError

PARTS = ("train", "valid", "test")
_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class LabelledPart:
    """source: where each clip lies, number: in it. targets: (n, C) fp32, 1 where a clip has the class. keys: paths."""

    source: list[Source]
    number: list[int]
    targets: np.ndarray
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Samples (T,) at 16 kHz. Raises AudioError."""
        return self.source[i].waveform(self.number[i], start_seconds, seconds)

    def seconds(self, i: int) -> float:
        return float(self.source[i].seconds[self.number[i]])


@dataclass(frozen=True)
class LabelledSet:
    """parts: of PARTS. multi: whether a clip may have several classes. bad: (path, reason) of clips left out.
    notes: a sentence for each thing that was made, changed or looks wrong."""

    parts: dict[str, LabelledPart]
    class_names: list[str]
    multi: bool
    bad: list[tuple[str, str]]
    notes: list[str]


@dataclass
class _Clip:
    source: Source
    number: int
    annotation: Annotation
    part: str | None
    digest: bytes

    @property
    def key(self) -> str:
        return self.source.path(self.number)


def read_labelled(
    train: Sequence[SourceConfig],
    valid: SourceConfig | None,
    test: SourceConfig | None,
    multi: bool | None,
    seed: int,
    test_fold: int | None = None,
    cache_gigabytes: float = 4.0,
) -> LabelledSet:
    """Open the sources and put every labelled clip into its part.

    Args:
        multi: several classes a clip; None finds out.
        test_fold: of a set with folds: tested on; the next is valid, the others train. None takes the first.
        cache_gigabytes: a source that fits is decoded once into the 16-bit cache.

    Raises:
        UserError: no labels, fewer than two classes, several labels where one is wanted, an empty part.
    """
    clips: list[_Clip] = []
    bad: list[tuple[str, str]] = []
    notes: list[str] = []
    given: list[tuple[SourceConfig, str | None]] = [(config, None) for config in train]
    given += [(config, part) for config, part in ((valid, "valid"), (test, "test")) if config is not None]
    for config, part in given:
        source = open_source(config)
        if cache_bytes(source) <= cache_gigabytes * 1e9:
            source = CachedSource(source)
        bad += source.bad_paths
        if not source.class_names:
            raise UserError(
                f"{config.path} has no labels; it needs class folders, a labels.csv (filename,label), or label_column"
            )
        found = [(i, source.annotation(i)) for i in range(len(source))]
        clips += [_Clip(source, i, a, part or a.split, content_digest(source.read(i))) for i, a in found if a]
        unlabelled = sum(annotation is None for _, annotation in found)
        if unlabelled:
            notes.append(f"{unlabelled} clips of {config.path} have no label and are left out")
    class_names = sorted({label for clip in clips for label in clip.annotation.labels})
    if len(class_names) < 2:
        raise UserError(f"the set has {len(class_names)} class ({', '.join(class_names)}); it takes two or more")
    several = [clip for clip in clips if len(clip.annotation.labels) > 1]
    if multi is False and several:
        raise UserError(f"{several[0].key} has several labels; set classify.task=multi, or give each clip one")
    _complete(clips, valid is not None, test is not None, test_fold, seed, notes)
    clips = _without_leaks(clips, notes)
    parts = {name: _part([clip for clip in clips if clip.part == name], class_names) for name in PARTS}
    for name, clips_of_part in parts.items():
        if not len(clips_of_part):
            raise UserError(f"no clip is left for {name}; the set has {len(clips)} labelled clips, give it more")
    notes += _odd_classes(parts, class_names)
    return LabelledSet(parts, class_names, bool(several) if multi is None else multi, bad, notes)


def _complete(
    clips: list[_Clip], has_valid: bool, has_test: bool, test_fold: int | None, seed: int, notes: list[str]
) -> None:
    """Give a part to each clip that has none."""
    folds = sorted({clip.annotation.fold for clip in clips if clip.annotation.fold is not None})
    if folds and not any(clip.part for clip in clips):
        if len(folds) < 3:
            raise UserError(f"the set has {len(folds)} folds; it takes three or more: train, valid and test")
        tested = folds[0] if test_fold is None else test_fold
        if tested not in folds:
            raise UserError(f"classify.test_fold={tested} is not a fold; there are {', '.join(map(str, folds))}")
        following = folds[(folds.index(tested) + 1) % len(folds)]
        for clip in clips:
            clip.part = {tested: "test", following: "valid"}.get(clip.annotation.fold or 0, "train")
        notes.append(f"tested on fold {tested}, validated on fold {following}, trained on the rest")
        return
    for clip in clips:
        clip.part = clip.part or "train"
    there = {clip.part for clip in clips}
    shares = [_SHARES[0], 0.0 if "valid" in there else _SHARES[1], 0.0 if "test" in there else _SHARES[2]]
    if sum(shares[1:]) == 0:
        return
    chosen = [clip for clip in clips if clip.part == "train"]
    groups = [clip.annotation.group or clip.digest.hex() for clip in chosen]
    shares = [share / sum(shares) for share in shares]
    for clip, part in zip(
        chosen, assign_parts([c.annotation.labels for c in chosen], groups, shares, seed), strict=True
    ):
        clip.part = PARTS[part]
    made = " and ".join(name for name, share in zip(PARTS, shares, strict=True) if share and name != "train")
    notes.append(f"{made} made from train, stratified by class, with seed {seed} (splits.csv says which clip is where)")


def _without_leaks(clips: list[_Clip], notes: list[str]) -> list[_Clip]:
    """Without the train clips whose files also stand in valid or test."""
    held_out = {clip.digest for clip in clips if clip.part != "train"}
    kept = [clip for clip in clips if clip.part != "train" or clip.digest not in held_out]
    if len(kept) < len(clips):
        first = next(clip for clip in clips if clip.part == "train" and clip.digest in held_out)
        notes.append(
            f"{len(clips) - len(kept)} train clips are also in valid or test, {first.key} for one; left out of train"
        )
    between = {c.digest for c in clips if c.part == "valid"} & {c.digest for c in clips if c.part == "test"}
    if between:
        notes.append(f"{len(between)} clips are both in valid and in test")
    return kept


def _part(clips: list[_Clip], class_names: list[str]) -> LabelledPart:
    column = {name: number for number, name in enumerate(class_names)}
    targets = np.zeros((len(clips), len(class_names)), np.float32)
    for row, clip in enumerate(clips):
        targets[row, [column[label] for label in clip.annotation.labels]] = 1
    return LabelledPart([c.source for c in clips], [c.number for c in clips], targets, [c.key for c in clips])


def _odd_classes(parts: dict[str, LabelledPart], class_names: list[str]) -> list[str]:
    """Classes that cannot be learnt or not be measured."""
    counts = {name: Counter(dict(zip(class_names, part.targets.sum(0), strict=True))) for name, part in parts.items()}
    unlearnt = [name for name in class_names if not counts["train"][name]]
    unmeasured = [name for name in class_names if not counts["test"][name]]
    notes = []
    if unlearnt:
        notes.append(f"train has no clip of {', '.join(unlearnt)}: never predicted rightly")
    if unmeasured:
        notes.append(f"test has no clip of {', '.join(unmeasured)}: not measured")
    return notes
