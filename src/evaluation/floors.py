"""What a classifier has to beat: the commonest class, and logistic regression on plain mel statistics."""

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
    """Accuracy on test, or mean average precision where a clip may have several classes.

    Args:
        train: (n, D), test: (m, D) mel statistics. train_targets: (n, C), test_targets: (m, C), 0 or 1.

    Returns:
        majority (single) or prior (multi): each class by its share of train; mel: logistic regression.
    """
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    if not multi:
        learnt, true = train_targets.argmax(1), test_targets.argmax(1)
        majority = majority_accuracy(learnt, true)
        return {"majority": majority, "mel": linear_accuracy(train, learnt, test, true)}
    prior = np.broadcast_to(train_targets.mean(0), test_targets.shape)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        fitted = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=200)).fit(train, train_targets.astype(int))
        chance = fitted.predict_proba(test)
    return {"prior": scores(test_targets, prior, True)["map"], "mel": scores(test_targets, chance, True)["map"]}
