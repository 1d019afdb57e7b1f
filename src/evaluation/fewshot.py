"""Few-shot classification by the nearest class mean (SimpleShot, Wang et al., 2019), repeated with new draws."""

from typing import Any

import numpy as np

from src.errors import UserError
from src.evaluation.intervals import mean_interval
from src.evaluation.problem import Problem, Result
from src.evaluation.scoring import score_part


def fewshot(
    problem: Problem, seed: int = 0, chosen: dict[str, Any] | None = None, shots: int = 5, repetitions: int = 20
) -> Result:
    """Method of `src.evaluation.problem`: each repetition draws `shots` rows of each class of train.

    Embeddings are centered by the mean of the drawn rows and scaled to unit length, and a prediction is minus the
    distance to the class mean, as SimpleShot's CL2N. Scores and predictions are means over the repetitions.

    Returns:
        A result whose details have, for each metric, the test score of each repetition and `intervals`, the 95 %
        interval of its mean; and `short_classes`, which have fewer rows than `shots` and enter with all of them.

    Raises:
        UserError: a multi-label or timestamp task; a class without rows in train.
    """
    if problem.kind != "multiclass" or problem.train.frames is not None:
        raise UserError("few-shot is for tasks with one label a clip; choose another method for this one")
    rows_of = [np.flatnonzero(problem.train.targets == c) for c in range(problem.num_classes)]
    missing = [c for c, rows in enumerate(rows_of) if not len(rows)]
    if missing:
        raise UserError(f"few-shot: classes {missing} have no rows in train")
    random = np.random.default_rng(seed)
    runs: dict[str, list[dict[str, float]]] = {"test": [], "valid": []}
    total = np.zeros((len(problem.test.features), problem.num_classes))
    for _ in range(repetitions):
        drawn = [random.choice(rows, min(shots, len(rows)), replace=False) for rows in rows_of]
        support = [problem.train.features[np.sort(rows)] for rows in drawn]
        predictions = _nearest_mean(support, problem.test.features)
        total += predictions
        runs["test"].append(score_part(problem, problem.test, predictions)[0])
        if problem.valid is not None:
            predictions = _nearest_mean(support, problem.valid.features)
            runs["valid"].append(score_part(problem, problem.valid, predictions)[0])
    return _result(runs, total / repetitions, shots, [c for c, rows in enumerate(rows_of) if len(rows) < shots])


def _result(runs: dict[str, list[dict[str, float]]], predictions: np.ndarray, shots: int, short: list[int]) -> Result:
    scores = {name: [run[name] for run in runs["test"]] for name in runs["test"][0]}
    intervals = {name: mean_interval(values) for name, values in scores.items()}
    valid = {name: float(np.mean([run[name] for run in runs["valid"]])) for name in scores} if runs["valid"] else {}
    details = {
        "shots": shots,
        "repetitions": len(runs["test"]),
        "scores": scores,
        "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        "short_classes": short,
    }
    return Result(valid, {name: i.value for name, i in intervals.items()}, predictions, details=details)


def _nearest_mean(support: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Minus the Euclidean distance (N, C) of each row (N, D) to each class's mean. support: (n, D) for each class."""
    center = np.concatenate(support).mean(0)
    means = np.stack([_unit(each - center).mean(0) for each in support])
    unit = _unit(rows - center)
    squares = (unit**2).sum(1)[:, None] + (means**2).sum(1) - 2 * unit @ means.T
    return -np.sqrt(np.maximum(squares, 0.0))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
