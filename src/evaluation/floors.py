"""Floors that a classifier has to beat: the most frequent class, and logistic regression on mel statistics."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits

from src.evaluation.linear import linear_accuracy
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
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        fitted = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=200)).fit(train, train_targets.astype(int))
        probabilities = fitted.predict_proba(test)
    return {"prior": scores(test_targets, prior, True)["map"], "mel": scores(test_targets, probabilities, True)["map"]}
