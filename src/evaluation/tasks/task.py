"""An evaluation task: labeled clips in parts (train, valid, test, or folds), whatever layout they come in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from src.data.sources.index import digest
from src.data.sources.source import Source
from src.errors import UserError
from src.evaluation import event_scores, metrics
from src.evaluation.problem import Event, Kind

SPLITS = ("train", "valid", "test")
SCENE_METRICS = {"multiclass": ("top1_acc",), "multilabel": ("mAP", "d_prime", "aucroc")}
EVENT_METRICS = ("event_onset_200ms_fms", "segment_1s_er")
_PREFIXES = {"env": "environment", "environment": "environment", "music": "music", "speech": "speech"}


class Clip(NamedTuple):
    """number: index in the source."""

    source: Source
    number: int


class Labels(NamedTuple):
    """Of one clip. part: a split or fold. classes: indices. events: of timestamp tasks. group: clips that belong
    together, e.g. of a speaker; the bootstrap draws groups. None is a group of its own."""

    part: str
    classes: tuple[int, ...]
    events: tuple[Event, ...] = ()
    group: str | None = None


class Rotation(NamedTuple):
    """Indices of the clips of each split. name: of the test fold, or "test". valid is empty without such a split."""

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Task:
    """Attributes:
    clips, labels: of each clip, in the same order.
    folds: names in the order of rotation; empty for a task with train, valid and test.
    metrics, postprocessing, grid, stop_on_score: as `src.evaluation.problem.Problem`.
    domain: environment, speech or music; None if unknown.
    path: as given to the command. layout: where the task came from, for the table.
    notes: what was assumed, a sentence each.
    """

    name: str
    layout: str
    clips: Sequence[Clip]
    labels: Sequence[Labels]
    class_names: Sequence[str]
    kind: Kind
    metrics: Sequence[str]
    timestamps: bool = False
    folds: Sequence[str] = ()
    domain: str | None = None
    postprocessing: dict[str, list[float]] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    stop_on_score: bool = True
    notes: Sequence[str] = ()
    path: str = ""

    @cached_property
    def content(self) -> str:
        """Hash that identifies the audio of the clips and their order."""
        sources = {id(clip.source): clip.source.fingerprint for clip in self.clips}
        return digest([*sources.values(), *(f"{sources[id(c.source)]} {c.number}" for c in self.clips)])

    @cached_property
    def annotation(self) -> str:
        """Hash that identifies labels, parts and what is scored."""
        rest = (self.kind, self.metrics, self.timestamps, self.folds, self.postprocessing, self.grid)
        return digest([repr(each) for each in (*self.labels, *self.class_names, *rest, self.stop_on_score)])

    def rotations(self) -> list[Rotation]:
        """One for train, valid and test; of k folds k: each fold is test once, the next one valid, the others train.

        Train is in a random order (seed 0), fold after fold, as HEAR's kit stores it: its MLP does not shuffle.
        """
        clips: dict[str, list[int]] = {part: [] for part in self.folds or SPLITS}
        for i, labels in enumerate(self.labels):
            clips[labels.part].append(i)
        shuffled = {part: np.random.default_rng(0).permutation(np.array(each, int)) for part, each in clips.items()}

        def rotation(name: str, train: Sequence[str], valid: str, test: str) -> Rotation:
            rows = np.concatenate([shuffled[part] for part in train])
            return Rotation(name, rows, np.array(clips[valid], int), np.array(clips[test], int))

        if not self.folds:
            return [rotation("test", ["train"], "valid", "test")]
        following = [*self.folds[1:], self.folds[0]]
        return [
            rotation(test, [fold for fold in self.folds if fold not in (test, valid)], valid, test)
            for test, valid in zip(self.folds, following, strict=True)
        ]

    def targets(self) -> np.ndarray:
        """Multiclass: (n,) class indices; multilabel: (n, C), 0 or 1."""
        if self.kind == "multiclass":
            return np.array([labels.classes[0] for labels in self.labels])
        targets = np.zeros((len(self.labels), len(self.class_names)), np.float32)
        for row, labels in enumerate(self.labels):
            targets[row, list(labels.classes)] = 1
        return targets


def check(task: Task) -> Task:
    """The task, if it can be scored.

    Raises:
        UserError: fewer than two classes; an unknown metric; an empty split; too few folds; a class of test without
            clips in train; a clip of a multiclass task without exactly one class; clips that can't be read.
    """
    if len(task.class_names) < 2:
        raise UserError(f"{task.name} has {len(task.class_names)} class; a task needs two or more")
    known = event_scores.EVENT_METRICS if task.timestamps else metrics.METRICS
    for metric in task.metrics:
        if metric not in known:
            raise UserError(f"{task.name}: {metric} is no metric of such tasks; choose from {', '.join(known)}")
    if task.folds and len(task.folds) < 3:
        raise UserError(f"{task.name} has {len(task.folds)} folds; it needs three or more: train, valid and test")
    if task.kind == "multiclass":
        for clip, labels in zip(task.clips, task.labels, strict=True):
            if len(labels.classes) != 1:
                path = clip.source.path(clip.number)
                raise UserError(
                    f"{task.name}: {path} has {len(labels.classes)} labels; a multiclass task has one a clip"
                )
    for source in {id(clip.source): clip.source for clip in task.clips}.values():
        require_readable(task.name, source)
    for rotation in task.rotations():
        _check_rotation(task, rotation)
    return task


def require_readable(name: str, source: Source) -> None:
    """Raises: UserError: clips without a readable header, which the source leaves out."""
    if source.bad_paths:
        path, reason = source.bad_paths[0]
        raise UserError(f"{name}: {len(source.bad_paths)} clips can't be read, such as {path} ({reason}); replace them")


def _check_rotation(task: Task, rotation: Rotation) -> None:
    where = f" when fold {rotation.name} is test" if task.folds else ""
    for split in ("train", "test"):
        if not len(getattr(rotation, split)):
            raise UserError(f"{task.name}: {split} has no clips{where}; each task needs clips in train and test")
    known = {c for i in rotation.train for c in task.labels[i].classes}
    unknown = sorted({c for i in rotation.test for c in task.labels[i].classes} - known)
    if unknown:
        names = ", ".join(task.class_names[c] for c in unknown)
        raise UserError(f"{task.name}: test has clips of {names}, but train has none{where}; no encoder can learn that")


def domain_of(name: str) -> str | None:
    """Domain that a task's name starts with, as in `env_animals`, `music_chord`, `speech_tone`."""
    return _PREFIXES.get(name.split("_")[0])
