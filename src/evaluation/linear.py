"""Linear probe: logistic regression (scikit-learn) on fixed embeddings."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def linear_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int = 0
) -> float:
    """Test accuracy; the inverse regularisation is the one of STRENGTHS that does best on a held-out quarter of train.

    Args:
        train: (n, D), test: (m, D), standardised. train_labels, test_labels: integers.
    """
    counts = np.bincount(train_labels)
    stratify = train_labels if counts[counts > 0].min() >= 2 else None
    fit, held, fit_labels, held_labels = train_test_split(
        train, train_labels, test_size=0.25, random_state=seed, stratify=stratify
    )
    scores = [_fit(fit, fit_labels, strength).score(held, held_labels) for strength in STRENGTHS]
    return float(_fit(train, train_labels, STRENGTHS[int(np.argmax(scores))]).score(test, test_labels))


def _fit(rows: np.ndarray, labels: np.ndarray, strength: float) -> LogisticRegression:
    # Two threads take ten times as long on problems of this size; the weakest strengths need not converge to be ranked.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=100).fit(rows, labels)
