"""Metrics of clips, under the names of HEAR (hear-eval-kit, `heareval/score.py`): pure functions of arrays.

Each takes `targets`, (N,) class indices or (N, C) of 0 and 1, and `predictions`, (N, C), higher for more likely
classes, and returns a float. Zero rows give NaN. Ties of `argmax` go to the lower class.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score


def accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Fraction of rows whose highest prediction is the true class, 0 to 1; HEAR's `top1_acc` and `pitch_acc`.

    If rows may have several classes, the true class is the first of them, and class 0 for a row without any, as in
    HEAR; so it says little there.
    """
    return _mean(_indices(targets) == predictions.argmax(1))


def chroma_accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """As `accuracy`, with class indices modulo 12: octave errors count as right; HEAR's `chroma_acc`.

    Classes must be semitones in order without gaps.
    """
    return _mean(_indices(targets) % 12 == predictions.argmax(1) % 12)


def mean_average_precision(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over classes of average precision (scikit-learn's), 0 to 1; HEAR's `mAP`.

    Classes without positives are left out; NaN if there is no other. (scikit-learn counts them as 0, or as NaN in
    HEAR's time.) A class without negatives has 1.
    """
    hot = one_hot(targets, predictions.shape[1])
    occurs = hot.any(0)
    if not occurs.any():
        return float("nan")
    return float(average_precision_score(hot[:, occurs], predictions[:, occurs], average="macro"))


def area_under_curve(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over classes of the area under the ROC curve (scikit-learn's), 0 to 1, chance 0.5; HEAR's `aucroc`.

    Classes without positives or without negatives are left out; NaN if there is no other. (HEAR has NaN if there is
    any such class.)
    """
    return _mean(_class_areas(targets, predictions))


def d_prime(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean over classes of sqrt(2) times the normal quantile of the area under the ROC curve; chance 0.

    Infinite if a class is separated perfectly. Classes are left out as in `area_under_curve`.
    """
    return _mean(np.sqrt(2.0) * norm.ppf(_class_areas(targets, predictions)))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1_acc": accuracy,
    "pitch_acc": accuracy,
    "chroma_acc": chroma_accuracy,
    "mAP": mean_average_precision,
    "d_prime": d_prime,
    "aucroc": area_under_curve,
}


def score_rows(names: Sequence[str], targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Value of each metric in `names`, keys of `METRICS`."""
    return {name: METRICS[name](targets, predictions) for name in names}


def one_hot(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, C) bool from (N,) class indices or (N, C) of 0 and 1."""
    return targets > 0 if targets.ndim == 2 else targets[:, None] == np.arange(num_classes)


def _indices(targets: np.ndarray) -> np.ndarray:
    return targets.argmax(1) if targets.ndim == 2 else targets


def _class_areas(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class with positives and negatives."""
    hot = one_hot(targets, predictions.shape[1])
    defined = np.flatnonzero(hot.any(0) & ~hot.all(0))
    return np.array([roc_auc_score(hot[:, c], predictions[:, c]) for c in defined])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
