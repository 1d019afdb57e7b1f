"""How good a classifier is on a test set: metrics with bootstrap intervals, a row a class, confusions."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score

_RESAMPLES = 1000


def scores(targets: np.ndarray, probabilities: np.ndarray, multi: bool) -> dict[str, float]:
    """Single: accuracy and macro F1. Multi: mean average precision and macro F1 (at 0.5), over classes that occur.

    Args:
        targets: (n, C) 0 or 1. probabilities: (n, C).
    """
    if not multi:
        true, said = targets.argmax(1), probabilities.argmax(1)
        f1 = f1_score(true, said, average="macro", labels=np.unique(true), zero_division=0)
        return {"accuracy": float(accuracy_score(true, said)), "f1": float(f1)}
    there = np.flatnonzero((targets > 0).any(0))
    truth, chance = targets[:, there] > 0, probabilities[:, there]
    return {
        "map": float(average_precision_score(truth, chance, average="macro")),
        "f1": float(f1_score(truth, chance >= 0.5, average="macro", zero_division=0)),
    }


def intervals(targets: np.ndarray, probabilities: np.ndarray, multi: bool, seed: int = 0) -> dict[str, list[float]]:
    """95 % intervals of `scores` over resampled clips (percentile bootstrap, Efron and Tibshirani, 1993)."""
    random = np.random.default_rng(seed)
    draws = [random.integers(len(targets), size=len(targets)) for _ in range(_RESAMPLES)]
    samples = [scores(targets[draw], probabilities[draw], multi) for draw in draws]
    return {
        name: [float(value) for value in np.percentile([sample[name] for sample in samples], [2.5, 97.5])]
        for name in samples[0]
    }


def report(
    keys: list[str], targets: np.ndarray, probabilities: np.ndarray, class_names: list[str], multi: bool
) -> dict[str, Any]:
    """Plain values: scores with intervals, a row a class, calibration, the confusion matrix (single), the worst
    mistakes.

    Args:
        targets, probabilities: (n, C).
    """
    truth = targets > 0
    said = probabilities >= 0.5 if multi else np.eye(len(class_names), dtype=bool)[probabilities.argmax(1)]
    found: dict[str, Any] = {
        "clips": len(keys),
        "scores": scores(targets, probabilities, multi),
        "intervals": intervals(targets, probabilities, multi),
        "classes": class_rows(truth, said, class_names),
        "calibration": calibration(truth, probabilities, multi),
        "mistakes": mistakes(keys, truth, said, probabilities, class_names, multi),
    }
    if not multi:
        matrix = confusion_matrix(truth.argmax(1), said.argmax(1), labels=range(len(class_names)))
        found["confusion"] = matrix.tolist()
    return found


def class_rows(truth: np.ndarray, said: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """truth, said: (n, C), True where a clip (or token) has the class, or is said to have it."""
    return [
        {
            "name": name,
            "clips": int(truth[:, c].sum()),
            "precision": _share((truth & said)[:, c].sum(), said[:, c].sum()),
            "recall": _share((truth & said)[:, c].sum(), truth[:, c].sum()),
        }
        for c, name in enumerate(class_names)
    ]


def calibration(truth: np.ndarray, probabilities: np.ndarray, multi: bool) -> dict[str, Any]:
    """How far probabilities can be believed: of the likeliest class (single), of every class (multi), in ten bins.

    Returns:
        error: expected calibration error, 0 to 1 (Guo et al., 2017). bins: mean probability, share that was right,
        number.
    """
    if multi:
        chance, right = probabilities.ravel(), truth.ravel()
    else:
        chance, right = probabilities.max(1), truth[np.arange(len(truth)), probabilities.argmax(1)]
    place = np.minimum((chance * 10).astype(int), 9)
    bins = [
        {"probability": float(chance[here].mean()), "right": float(right[here].mean()), "number": int(here.sum())}
        for here in (place == b for b in range(10))
        if here.any()
    ]
    error = sum(each["number"] * abs(each["probability"] - each["right"]) for each in bins) / len(chance)
    return {"error": float(error), "bins": bins}


def mistakes(
    keys: list[str], truth: np.ndarray, said: np.ndarray, probabilities: np.ndarray, class_names: list[str], multi: bool
) -> list[dict[str, Any]]:
    """The 20 clips that were missed most surely; of several classes a clip the class that was missed most counts."""
    names = np.array(class_names)
    miss = np.abs(probabilities - truth).max(1) if multi else probabilities.max(1)
    wrong = np.flatnonzero((truth != said).any(1))
    return [
        {
            "path": keys[i],
            "label": "; ".join(names[truth[i]]),
            "predicted": "; ".join(names[said[i]]),
            "probability": float(probabilities[i].max()),
        }
        for i in wrong[np.argsort(-miss[wrong], kind="stable")][:20].tolist()
    ]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
