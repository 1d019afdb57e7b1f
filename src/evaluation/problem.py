"""What a scene or timestamp method gets and returns, so that any method can be run on any task.

A method is a function `fit_and_score(problem, seed=0, chosen=None) -> Result`. It fits on `problem.train`, chooses on
`problem.valid`, and scores `problem.test` once. With k-fold tasks it is called per fold, in order: `Result.chosen` of
the first fold is passed to the others as `chosen`, as HEAR searches its grid on the first fold only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

Kind = Literal["multiclass", "multilabel"]


class Event(NamedTuple):
    """A sound event. onset, offset: in seconds. label: class index."""

    onset: float
    offset: float
    label: int


@dataclass(frozen=True)
class Frames:
    """Where the rows of a timestamp task lie.

    Attributes:
        clip: (N,) integers, index into `events` of the clip that a row belongs to; ascending.
        time_ms: (N,) float64, in milliseconds, as the HEAR API returns them; increasing within a clip.
        events: true events of each clip; empty for a clip without events.
    """

    clip: np.ndarray
    time_ms: np.ndarray
    events: Sequence[Sequence[Event]]


@dataclass(frozen=True)
class Part:
    """Rows of one split: a row is a clip, or a frame of a timestamp task.

    Attributes:
        features: (N, D) float32, finite; may be a memory map.
        targets: multiclass: (N,) class indices; multilabel: (N, C), 0 or 1.
        frames: of timestamp tasks, else None.
    """

    features: np.ndarray
    targets: np.ndarray
    frames: Frames | None = None


@dataclass(frozen=True)
class Problem:
    """One task, or one fold of it, in one encoder's embeddings.

    Attributes:
        valid: None if the task has no validation split; methods that need one raise UserError or hold out a quarter of
            train, as each says.
        metrics: names in `src.evaluation.metrics.METRICS` or `src.evaluation.event_scores.EVENT_METRICS`; the first is
            the primary one, on which methods choose.
        postprocessing: timestamp tasks: values to try, HEAR's `evaluation_params.event_postprocessing_grid`; None for
            HEAR's default.
        grid: values that replace those of HEAR's MLP grid, its `evaluation_params.task_specific_param_grid`.
        stop_on_score: HEAR's `use_scoring_for_early_stopping`: choose the MLP's epoch by the primary metric, else by
            the validation loss.
    """

    train: Part
    valid: Part | None
    test: Part
    kind: Kind
    num_classes: int
    metrics: Sequence[str]
    postprocessing: dict[str, list[float]] | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    stop_on_score: bool = True


@dataclass(frozen=True)
class Result:
    """Scores and predictions of a method.

    Attributes:
        valid, test: value of each metric; NaN where it is undefined. valid is empty if there is no validation split.
        predictions: (N, C) probabilities or votes of the test rows.
        chosen: what was chosen on validation, as plain values; passed on to the other folds.
        events: timestamp tasks: predicted events of each test clip.
        details: what else belongs into results.json (epochs, options, scores of each repetition, ...), plain values.
    """

    valid: dict[str, float]
    test: dict[str, float]
    predictions: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)
    events: Sequence[Sequence[Event]] | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Method(Protocol):
    def __call__(self, problem: Problem, seed: int = 0, chosen: dict[str, Any] | None = None) -> Result: ...
