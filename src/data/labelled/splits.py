"""Train, valid and test splits of a labelled set: its own, made where it has none, or by fold.

Splits come from separate sources (splits of a dataset), from a `split` or `fold` column, or are made: stratified by
class, with groups and identical files kept together, fixed by the seed.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from src.data.labelled.clips import Clip, LabelledClips
from src.data.labelled.stratify import assign_parts
from src.data.sources.annotations import Event, in_order, whole_numbers
from src.errors import UserError

SPLITS = ("train", "valid", "test")
_SHARES = (0.7, 0.15, 0.15)
_FEW_TEST_CLIPS = 30  # below this, accuracy is off by about 0.1


@dataclass(frozen=True)
class Split:
    """rows: indices of its clips in the whole set. targets: (n, C) fp32, 1 where a clip has the class."""

    clips: list[Clip]
    rows: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def keys(self) -> list[str]:
        """Paths of the clips."""
        return [clip.key for clip in self.clips]

    @property
    def groups(self) -> list[str] | None:
        """The group of each clip, None without groups; a clip without one is a group of its own."""
        if not any(clip.annotation.group for clip in self.clips):
            return None
        return [clip.annotation.group or clip.digest for clip in self.clips]

    def waveform(self, i: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Samples (T,) at 16 kHz. Raises AudioError."""
        return self.clips[i].source.waveform(self.clips[i].number, start_seconds, seconds)

    def seconds(self, i: int) -> float:
        return self.clips[i].seconds

    def events(self, i: int) -> tuple[Event, ...]:
        return self.clips[i].annotation.events


@dataclass(frozen=True)
class LabelledSet:
    """`LabelledClips`, split. parts: by name in SPLITS."""

    parts: dict[str, Split]
    class_names: list[str]
    multi: bool
    bad: list[tuple[str, str]]
    notes: list[str]


def find_folds(labelled: LabelledClips, wanted: int | None, seed: int) -> list[str] | None:
    """The fold of each clip: the set's own, or else `wanted` new ones, "1" and so on; None without folds.

    Raises:
        UserError: fewer than three folds; only some clips have one; folds are wanted but the set is already split.
    """
    clips = labelled.clips
    own = [clip.annotation.fold for clip in clips]
    split = sorted({clip.split for clip in clips if clip.split})
    if wanted and split:
        raise UserError(
            f"classify.folds={wanted}, but the set has its own split ({', '.join(split)}); set classify.folds=null"
        )
    if split or (wanted is None and not any(own)):
        return None
    if any(own):
        folds = [fold for fold in own if fold]
        if len(folds) < len(clips):
            raise UserError(
                f"{len(clips) - len(folds)} of {len(clips)} clips have no fold, such as {clips[own.index(None)].key}; "
                "give every clip a fold, or none"
            )
    else:
        groups = [clip.annotation.group or clip.digest for clip in clips]
        shares = [1 / (wanted or 1)] * (wanted or 1)
        folds = [str(part + 1) for part in assign_parts([c.annotation.labels for c in clips], groups, shares, seed)]
    if len(set(folds)) < 3:
        raise UserError(f"the set has {len(set(folds))} folds; it takes three or more: train, valid and test")
    return folds


def make_splits(
    labelled: LabelledClips, seed: int, folds: list[str] | None = None, tested: str | None = None
) -> LabelledSet:
    """Assign every clip to a split.

    Args:
        folds: of each clip. `tested` is the test fold, None the first; the next one is valid, the others are train.

    Raises:
        UserError: no such fold, an empty split, fewer than two classes in train.
    """
    notes = list(labelled.notes)
    if folds is None and any(clip.annotation.fold for clip in labelled.clips):
        notes.append("the set has splits and folds: the splits are used")
    if folds is None and tested is not None:
        reason = "is already split" if any(clip.split for clip in labelled.clips) else "has no folds"
        raise UserError(f"classify.test_fold={tested}, but the set {reason}; set it to null, or add a fold column")
    parts = _by_fold(folds, tested, notes) if folds is not None else _make_missing(labelled.clips, seed, notes)
    parts = _without_leaks(labelled.clips, parts, notes)
    targets, divided = labelled.targets, {}
    for name in SPLITS:
        rows = np.array([row for row, part in enumerate(parts) if part == name], dtype=int)
        if not len(rows):
            raise UserError(f"no clip is left for {name}; the set has only {len(parts)} labelled clips, add more")
        divided[name] = Split([labelled.clips[row] for row in rows], rows, targets[rows])
    trained = [name for name, count in zip(labelled.class_names, divided["train"].targets.sum(0), strict=True) if count]
    if len(trained) < 2:
        raise UserError(f"train has only the class {', '.join(trained)}; it needs clips of two classes or more")
    notes += _odd_classes(divided, labelled.class_names)
    if folds is None and len(divided["test"]) < _FEW_TEST_CLIPS:
        notes.append(f"test has only {len(divided['test'])} clips; configs/classify/kfold.yaml tests on all clips")
    return LabelledSet(divided, labelled.class_names, labelled.multi, labelled.bad, notes)


def check_events(labelled: LabelledSet, hop_seconds: float) -> None:
    """Note events that no token of their clip lies in: beyond its end, or between two centers.

    Args:
        hop_seconds: between tokens, the first of which is half of it from the start.

    Raises:
        UserError: all those of a split.
    """
    for name, part in labelled.parts.items():
        missed, total = [], 0
        for i in range(len(part)):
            for event in part.events(i):
                center = (np.ceil(event.onset / hop_seconds - 0.5) + 0.5) * hop_seconds
                total += 1
                if center >= min(event.offset, part.seconds(i)):
                    missed.append((i, event))
        if not missed:
            continue
        i, event = missed[0]
        which = f"{part.keys[i]} ({event.onset:g} to {event.offset:g} s in a clip of {part.seconds(i):.2f} s)"
        if len(missed) == total:
            raise UserError(f"no event of {name} lies in its clip, such as {which}; onset and offset are in seconds")
        labelled.notes.append(
            f"{len(missed)} of {total} events of {name} lie beyond their clips or between tokens, such as {which}"
        )


def _by_fold(folds: list[str], tested: str | None, notes: list[str]) -> list[str | None]:
    names = in_order(folds)
    tested = names[0] if tested is None else tested if tested in names else whole_numbers([tested])[tested]
    if tested not in names:
        raise UserError(f"classify.test_fold={tested} is not a fold; the folds are {', '.join(names)}")
    following = names[(names.index(tested) + 1) % len(names)]
    notes.append(f"test on fold {tested}, validation on fold {following}, training on the others")
    return [{tested: "test", following: "valid"}.get(fold, "train") for fold in folds]


def _make_missing(clips: list[Clip], seed: int, notes: list[str]) -> list[str | None]:
    """The given split of each clip; a missing valid or test is taken from train."""
    parts: list[str | None] = [clip.split or "train" for clip in clips]
    wanted = [
        share if name == "train" or name not in parts else 0.0 for name, share in zip(SPLITS, _SHARES, strict=True)
    ]
    if sum(wanted[1:]) == 0:
        return parts
    rows = [row for row, part in enumerate(parts) if part == "train"]
    groups = [clips[row].annotation.group or clips[row].digest for row in rows]
    shares = [share / sum(wanted) for share in wanted]
    chosen = assign_parts([clips[row].annotation.labels for row in rows], groups, shares, seed)
    for row, part in zip(rows, chosen, strict=True):
        parts[row] = SPLITS[part]
    made = " and ".join(name for name, share in zip(SPLITS, wanted, strict=True) if share and name != "train")
    notes.append(f"{made} made from train, stratified by class, with seed {seed} (listed in splits.csv)")
    return parts


def _without_leaks(clips: list[Clip], parts: list[str | None], notes: list[str]) -> list[str | None]:
    """Remove train clips (part None) whose files are also in valid or test."""
    held_out = {clip.digest for clip, part in zip(clips, parts, strict=True) if part != "train"}
    leaks = [row for row, part in enumerate(parts) if part == "train" and clips[row].digest in held_out]
    if leaks:
        notes.append(
            f"{len(leaks)} train clips are also in valid or test (such as {clips[leaks[0]].key}): left out of train"
        )
    valid, test = ({clip.digest for clip, p in zip(clips, parts, strict=True) if p == name} for name in SPLITS[1:])
    if valid & test:
        notes.append(f"{len(valid & test)} clips are in both valid and test")
    left_out = set(leaks)
    return [None if row in left_out else part for row, part in enumerate(parts)]


def _odd_classes(parts: dict[str, Split], class_names: list[str]) -> list[str]:
    """Notes on classes that cannot be learned or measured."""
    counts = {name: Counter(dict(zip(class_names, part.targets.sum(0), strict=True))) for name, part in parts.items()}
    untrained = [name for name in class_names if not counts["train"][name]]
    unmeasured = [name for name in class_names if not counts["test"][name]]
    notes = []
    if untrained:
        notes.append(f"train has no clip of {', '.join(untrained)}: never predicted correctly")
    if unmeasured:
        notes.append(f"test has no clip of {', '.join(unmeasured)}: not measured")
    return notes
