"""Floors that a classifier has to beat: the most frequent class, and logistic regression on mel statistics."""

import numpy as np

from src.evaluation.linear import fit_linear, linear_accuracy
from src.evaluation.probes import majority_accuracy
from src.evaluation.report import scores


def floors(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray, multi: bool
) -> dict[str, float]:
    """Test accuracy, or mean average precision if a clip may have several classes.

    Args:
        train: (n, D), test: (m, D) mel statistics. train_targets: (n, C), test_targets: (m, C), 0 or 1.

    Returns:
        "majority" (single label): the most frequent class; "prior" (multi-label): class frequencies in train; "mel":
        logistic regression.
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    if not multi:
        train_labels, test_labels = train_targets.argmax(1), test_targets.argmax(1)
        majority = majority_accuracy(train_labels, test_labels)
        return {"majority": majority, "mel": linear_accuracy(train, train_labels, test, test_labels)}
    prior = np.broadcast_to(train_targets.mean(0), test_targets.shape)
    weight, bias = fit_linear(train, train_targets, multi)
    logits = test @ weight.T + bias
    return {"prior": scores(test_targets, prior, True)["map"], "mel": scores(test_targets, logits, True)["map"]}
