"""Bootstrap samples of a method's primary score on the test clips of one fold, for intervals and paired differences."""

import numpy as np

from src.evaluation.event_scores import EVENT_METRICS, clip_counts
from src.evaluation.intervals import RESAMPLES, bootstrap_samples
from src.evaluation.metrics import METRICS, one_hot
from src.evaluation.problem import Part, Problem, Result

_CORRECT = ("top1_acc", "pitch_acc", "chroma_acc")  # means over clips


def resample(problem: Problem, result: Result, groups: list[str] | None, seed: int) -> np.ndarray:
    """Primary score of each resample of the test clips, (RESAMPLES,).

    The same test set and seed draw the same clips for each encoder. Of few-shot, the repetitions are drawn instead.
    """
    primary, test = problem.metrics[0], problem.test
    if "repetitions" in result.details:
        values = np.array(result.details["scores"][primary])
        return bootstrap_samples(lambda draw: float(values[draw].mean()), len(values), None, seed)
    if test.frames is not None:
        assert result.events is not None
        counts = clip_counts(primary, test.frames.events, result.events)
        value = EVENT_METRICS[primary].value
        return bootstrap_samples(lambda draw: value(counts[draw].sum(0)), len(counts), groups, seed)
    if primary in _CORRECT:
        right = _right(primary, test, result.predictions)
        return bootstrap_samples(lambda draw: float(right[draw].mean()), len(right), groups, seed)
    if primary == "mAP":
        return _precisions(one_hot(test.targets, problem.num_classes), result.predictions, groups, seed)
    metric = METRICS[primary]
    return bootstrap_samples(
        lambda draw: metric(test.targets[draw], result.predictions[draw]), len(test.targets), groups, seed
    )


def _right(primary: str, test: Part, predictions: np.ndarray) -> np.ndarray:
    """(N,) whether each clip counts as right."""
    true = test.targets.argmax(1) if test.targets.ndim == 2 else test.targets
    octave = 12 if primary == "chroma_acc" else predictions.shape[1]
    return true % octave == predictions.argmax(1) % octave


def _precisions(hot: np.ndarray, predictions: np.ndarray, groups: list[str] | None, seed: int) -> np.ndarray:
    """Mean average precision of the resamples, with each class sorted only once."""
    orders = np.argsort(-predictions, axis=0, kind="stable")
    sorted_scores = np.take_along_axis(predictions, orders, 0)
    last = np.vstack([sorted_scores[1:] != sorted_scores[:-1], np.ones((1, hot.shape[1]), bool)])  # of equal scores
    positive = np.take_along_axis(hot, orders, 0)

    def score(draw: np.ndarray) -> float:
        weight = np.bincount(draw, minlength=len(hot)).astype(float)[orders]  # how often each clip was drawn
        hits = np.cumsum(weight * positive, 0)
        seen = np.cumsum(weight, 0)
        precision = hits / np.maximum(seen, 1)
        values = []
        for c in np.flatnonzero(hits[-1] > 0):
            ends = last[:, c]
            gained = np.diff(hits[ends, c], prepend=0.0)
            values.append((gained * precision[ends, c]).sum() / hits[-1, c])
        return float(np.mean(values)) if values else float("nan")

    return bootstrap_samples(score, len(hot), groups, seed, RESAMPLES)
