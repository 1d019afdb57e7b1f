"""Linear probe: logistic regression (scikit-learn) on fixed embeddings."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_MOST_ROWS = 20_000
_NEVER = -10.0  # bias of a class that no row has


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


def fit_linear(
    train: np.ndarray, targets: np.ndarray, multi: bool, balanced: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of logistic regression, regularised as `linear_accuracy`.

    Args:
        train: (n, D), standardised; of more than 20,000 rows that many are drawn. targets: (n, C) 0 or 1.
        multi: several classes a row, a regression a class. balanced: classes count alike, however many rows they have.
    """
    if len(train) > _MOST_ROWS:
        chosen = np.random.default_rng(seed).choice(len(train), _MOST_ROWS, replace=False)
        train, targets = train[chosen], targets[chosen]
    weight, bias = np.zeros((targets.shape[1], train.shape[1])), np.full(targets.shape[1], _NEVER)
    kind = "balanced" if balanced else None
    strength = _best_strength(train, targets, multi, seed)
    if not multi:
        fitted = _fit(train, targets.argmax(1), strength, kind)
        if len(fitted.classes_) > 2:
            weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
        else:  # one row for two classes
            half = np.array([-0.5, 0.5])
            weight[fitted.classes_] = half[:, None] * fitted.coef_
            bias[fitted.classes_] = half * fitted.intercept_
        return weight, bias
    for c in np.flatnonzero(targets.any(0)):
        if targets[:, c].all():
            bias[c] = -_NEVER
        else:
            fitted = _fit(train, targets[:, c].astype(int), strength, kind)
            weight[c], bias[c] = fitted.coef_[0], fitted.intercept_[0]
    return weight, bias


def _best_strength(train: np.ndarray, targets: np.ndarray, multi: bool, seed: int) -> float:
    """By log loss on a held-out quarter; of several labels a row by that of the class nearest to half of them."""
    labels = targets[:, np.abs(targets.mean(0) - 0.5).argmin()].astype(int) if multi else targets.argmax(1)
    held = np.random.default_rng(seed).permutation(len(train)) < len(train) // 4
    if len(set(labels[~held])) < 2 or not held.any():
        return STRENGTHS[0]
    losses = []
    for strength in STRENGTHS:
        fitted = _fit(train[~held], labels[~held], strength)
        known = np.isin(labels[held], fitted.classes_)
        chance = fitted.predict_proba(train[held])[known]
        column = np.searchsorted(fitted.classes_, labels[held][known])
        losses.append(-np.log(chance[np.arange(len(chance)), column] + 1e-9).mean() if known.any() else 0.0)
    return STRENGTHS[int(np.argmin(losses))]


def _fit(rows: np.ndarray, labels: np.ndarray, strength: float, class_weight: str | None = None) -> LogisticRegression:
    # Two threads take ten times as long on problems of this size; the weakest strengths need not converge to be ranked.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=100, class_weight=class_weight).fit(rows, labels)
