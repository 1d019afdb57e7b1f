"""Predictions to scores, for every method in the same way: of clips, or of the events of a timestamp task."""

from typing import Any

import numpy as np
from sklearn.model_selection import ParameterGrid

from src.errors import UserError
from src.evaluation.event_scores import EVENT_METRICS, score_events
from src.evaluation.events import clip_events
from src.evaluation.metrics import METRICS, score_rows
from src.evaluation.problem import Event, Frames, Part, Problem, Result

# hear-eval-kit, heareval/predictions/task_predictions.py, EVENT_POSTPROCESSING_GRID
POSTPROCESSING = {"median_filter_ms": [250], "min_duration": [125, 250]}
_BLOCK_ROWS = 65536  # checked at a time


def maximize(metric: str) -> bool:
    """Whether higher values of `metric` are better."""
    return metric in METRICS or EVENT_METRICS[metric].maximize


def score_part(
    problem: Problem, part: Part, predictions: np.ndarray, postprocessing: dict[str, Any] | None = None
) -> tuple[dict[str, float], list[list[Event]] | None]:
    """Value of each metric of `problem`, and of a timestamp task the predicted events of each clip.

    Args:
        predictions: (N, C), probabilities for a timestamp task. postprocessing: of a timestamp task, as chosen by
            `choose_postprocessing`.
    """
    if part.frames is None:
        return score_rows(problem.metrics, part.targets, predictions), None
    events = clip_events(predictions, part.frames, **(postprocessing or {}))
    return score_events(problem.metrics, part.frames.events, events), events


def choose_postprocessing(problem: Problem, part: Part, predictions: np.ndarray) -> dict[str, Any] | None:
    """Values of `problem.postprocessing` with the best primary score on `part`; None if it isn't a timestamp task.

    An undefined score counts as 0, and of equal ones the larger values win, as in HEAR.
    """
    if part.frames is None:
        return None
    primary = problem.metrics[0]
    sign = 1 if maximize(primary) else -1
    best = max(postprocessing_grid(problem), key=lambda values: _rank(primary, sign, part.frames, predictions, values))
    return best


def postprocessing_grid(problem: Problem) -> list[dict[str, Any]]:
    """All combinations of `problem.postprocessing`."""
    return list(ParameterGrid(problem.postprocessing or POSTPROCESSING))


def _rank(primary: str, sign: int, frames: Frames | None, predictions: np.ndarray, values: dict[str, Any]) -> tuple:
    assert frames is not None
    score = score_events([primary], frames.events, clip_events(predictions, frames, **values))[primary]
    return (0.0 if np.isnan(score) else sign * score, tuple(values.items()))


def result(
    problem: Problem,
    predictions: np.ndarray,
    valid_predictions: np.ndarray | None,
    chosen: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
) -> Result:
    """The `Result` of predictions for test and validation; event postprocessing is chosen on validation.

    Raises:
        UserError: a timestamp task without a validation split and several values of postprocessing.
    """
    valid: dict[str, float] = {}
    postprocessing = None
    if valid_predictions is not None and problem.valid is not None:
        postprocessing = choose_postprocessing(problem, problem.valid, valid_predictions)
        valid, _ = score_part(problem, problem.valid, valid_predictions, postprocessing)
    elif problem.test.frames is not None:
        grid = postprocessing_grid(problem)
        if len(grid) > 1:
            raise UserError(
                "the task has no validation split to choose the postprocessing of events on; "
                "give one value each of median_filter_ms and min_duration"
            )
        postprocessing = grid[0]
    test, events = score_part(problem, problem.test, predictions, postprocessing)
    details = {**(details or {}), **({"postprocessing": postprocessing} if postprocessing else {})}
    return Result(valid, test, predictions, chosen or {}, events, details)


def check_problem(problem: Problem) -> None:
    """Raises: UserError: an empty split, embeddings that aren't finite, targets or times of a wrong form or range, a
    metric that is unknown or of the other kind of task."""
    parts = {"train": problem.train, "valid": problem.valid, "test": problem.test}
    for name, part in parts.items():
        if part is not None:
            _check_part(name, part, problem)
    known = METRICS if problem.test.frames is None else EVENT_METRICS
    if not problem.metrics:
        raise UserError(f"the task names no metric; choose from {', '.join(known)}")
    for metric in problem.metrics:
        if metric not in known:
            kind = "scene" if problem.test.frames is None else "timestamp"
            raise UserError(f"metric {metric!r} isn't known for {kind} tasks; choose from {', '.join(known)}")


def _check_part(name: str, part: Part, problem: Problem) -> None:
    count = len(part.features)
    if not count:
        raise UserError(f"the {name} split has no clips")
    if part.features.shape[1] != problem.train.features.shape[1]:
        raise UserError(
            f"{name} embeddings have {part.features.shape[1]} values, those of train {problem.train.features.shape[1]}"
        )
    shape = (count, problem.num_classes) if problem.kind == "multilabel" else (count,)
    if part.targets.shape != shape:
        raise UserError(f"{name} targets have shape {part.targets.shape} instead of {shape}")
    highest = 1 if problem.kind == "multilabel" else problem.num_classes - 1
    if part.targets.min() < 0 or part.targets.max() > highest:
        raise UserError(f"{name} targets are {part.targets.min()} to {part.targets.max()}; they must be 0 to {highest}")
    for first in range(0, count, _BLOCK_ROWS):
        bad = ~np.isfinite(part.features[first : first + _BLOCK_ROWS]).all(1)
        if bad.any():
            raise UserError(f"row {first + int(bad.argmax())} of the {name} embeddings has values that aren't finite")
    if part.frames is not None:
        step, time = np.diff(part.frames.clip), np.diff(part.frames.time_ms)
        if (step < 0).any() or (time[step == 0] <= 0).any():
            raise UserError(f"the frames of the {name} split aren't in the order of clips and times")
