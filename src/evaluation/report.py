"""Report of a classifier on a test set: scores with bootstrap intervals, classes, confusion matrix, mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score

from src.evaluation.intervals import bootstrap_draws


def scores(targets: np.ndarray, probabilities: np.ndarray, multi: bool) -> dict[str, float]:
    """Single label: accuracy and macro F1. Multi-label: mean average precision and macro F1 at 0.5.

    Averages are over classes that occur.

    Args:
        targets: (n, C) 0 or 1. probabilities: (n, C).
    """
    if not multi:
        true, predicted = targets.argmax(1), probabilities.argmax(1)
        f1 = f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
        return {"accuracy": float(accuracy_score(true, predicted)), "f1": float(f1)}
    occurring = np.flatnonzero((targets > 0).any(0))
    has_class, probabilities = targets[:, occurring] > 0, probabilities[:, occurring]
    return {
        "map": float(average_precision_score(has_class, probabilities, average="macro")),
        "f1": float(f1_score(has_class, probabilities >= 0.5, average="macro", zero_division=0)),
    }


def intervals(
    targets: np.ndarray, probabilities: np.ndarray, multi: bool, groups: Sequence[str] | None = None, seed: int = 0
) -> dict[str, list[float]]:
    """95 % intervals of `scores` (percentile bootstrap, Efron and Tibshirani, 1993). groups: as in `report`."""
    draws = bootstrap_draws(len(targets), groups, seed)
    samples = [scores(targets[draw], probabilities[draw], multi) for draw in draws if targets[draw].any()]
    return {
        name: [float(value) for value in np.percentile([sample[name] for sample in samples], [2.5, 97.5])]
        for name in samples[0]
    }


def report(
    keys: list[str],
    targets: np.ndarray,
    probabilities: np.ndarray,
    class_names: list[str],
    multi: bool,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores with intervals, a row per class, calibration, mistakes, confusion matrix (single label); plain values.

    Args:
        targets, probabilities: (n, C).
        groups: of each clip, e.g. its recording or speaker; the bootstrap draws groups instead of clips.
    """
    true = targets > 0
    predicted = probabilities >= 0.5 if multi else np.eye(len(class_names), dtype=bool)[probabilities.argmax(1)]
    result: dict[str, Any] = {
        "clips": len(keys),
        "scores": scores(targets, probabilities, multi),
        "intervals": intervals(targets, probabilities, multi, groups),
        "classes": class_rows(true, predicted, class_names),
        "calibration": calibration(true, probabilities, multi),
        "mistakes": mistakes(keys, true, predicted, probabilities, class_names, multi),
    }
    if not multi:
        matrix = confusion_matrix(true.argmax(1), predicted.argmax(1), labels=range(len(class_names)))
        result["confusion"] = matrix.tolist()
    return result


def class_rows(true: np.ndarray, predicted: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """Count, precision and recall of each class. true, predicted: (n, C) bool of clips or tokens."""
    return [
        {
            "name": name,
            "clips": int(true[:, c].sum()),
            "precision": _ratio((true & predicted)[:, c].sum(), predicted[:, c].sum()),
            "recall": _ratio((true & predicted)[:, c].sum(), true[:, c].sum()),
        }
        for c, name in enumerate(class_names)
    ]


def calibration(true: np.ndarray, probabilities: np.ndarray, multi: bool) -> dict[str, Any]:
    """Calibration in ten bins: of the most probable class (single label) or of all classes (multi-label).

    Returns:
        error: expected calibration error, 0 to 1 (Guo et al., 2017). bins: mean probability, fraction correct, count.
    """
    if multi:
        probability, right = probabilities.ravel(), true.ravel()
    else:
        probability, right = probabilities.max(1), true[np.arange(len(true)), probabilities.argmax(1)]
    bin_of = np.minimum((probability * 10).astype(int), 9)
    bins = [
        {
            "probability": float(probability[inside].mean()),
            "right": float(right[inside].mean()),
            "number": int(inside.sum()),
        }
        for inside in (bin_of == b for b in range(10))
        if inside.any()
    ]
    error = sum(each["number"] * abs(each["probability"] - each["right"]) for each in bins) / len(probability)
    return {"error": float(error), "bins": bins}


def mistakes(
    keys: list[str],
    true: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    class_names: list[str],
    multi: bool,
) -> list[dict[str, Any]]:
    """The 20 most confident mistakes; with several classes per clip, the class with the largest error counts."""
    names = np.array(class_names)
    error = np.abs(probabilities - true).max(1) if multi else probabilities.max(1)
    wrong = np.flatnonzero((true != predicted).any(1))
    return [
        {
            "path": keys[i],
            "label": "; ".join(names[true[i]]),
            "predicted": "; ".join(names[predicted[i]]),
            "probability": float(probabilities[i].max()),
        }
        for i in wrong[np.argsort(-error[wrong], kind="stable")][:20].tolist()
    ]


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
