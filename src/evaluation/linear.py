"""Linear probe: logistic regression (scikit-learn) on fixed embeddings."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_MAX_ROWS = 20_000
_NEVER = -10.0  # bias of a class without rows


def linear_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, seed: int = 0
) -> float:
    """Test accuracy, 0 to 1; the inverse regularization strength is chosen on a held-out quarter of train.

    If train has a single class, the probe always predicts it.

    Args:
        train: (n, D), test: (m, D), standardized. train_labels, test_labels: integers.
    """
    if len(set(train_labels.tolist())) == 1:
        return float((test_labels == train_labels[0]).mean())
    fit, held = _hold_out(train_labels, seed)
    if len(set(train_labels[fit].tolist())) == 1:
        strength = STRENGTHS[0]
    else:
        fitted = [_fit(train[fit], train_labels[fit], strength) for strength in STRENGTHS]
        strength = STRENGTHS[int(np.argmax([each.score(train[held], train_labels[held]) for each in fitted]))]
    return float(_fit(train, train_labels, strength).score(test, test_labels))


def _hold_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and a quarter of the rows, held out; stratified if both can hold every class."""
    counts = np.bincount(labels)
    classes, held = int((counts > 0).sum()), -(-len(labels) // 4)
    enough = counts[counts > 0].min() >= 2 and classes <= min(held, len(labels) - held)
    stratify = labels if enough else None
    fit, held_rows = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=seed, stratify=stratify)
    return fit, held_rows


def fit_linear(
    train: np.ndarray, targets: np.ndarray, multi: bool, balanced: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of logistic regression; the regularization is chosen on a held-out quarter.

    Args:
        train: (n, D), standardized; a random subset of 20,000 rows is used if there are more.
        targets: (n, C), 0 or 1.
        multi: rows may have several classes; fits one regression per class.
        balanced: weight classes equally, whatever their number of rows.
    """
    if len(train) > _MAX_ROWS:
        chosen = np.random.default_rng(seed).choice(len(train), _MAX_ROWS, replace=False)
        train, targets = train[chosen], targets[chosen]
    weight, bias = np.zeros((targets.shape[1], train.shape[1])), np.full(targets.shape[1], _NEVER)
    if not multi and len(only := np.unique(targets.argmax(1))) == 1:
        bias[only] = -_NEVER
        return weight, bias
    kind = "balanced" if balanced else None
    strength = _best_strength(train, targets, multi, seed)
    if not multi:
        fitted = _fit(train, targets.argmax(1), strength, kind)
        if len(fitted.classes_) > 2:
            weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
        else:  # scikit-learn fits one set of weights for two classes
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
    """The strength of lowest log loss on a held-out quarter; multi-label: of the class closest to half the rows."""
    labels = targets[:, np.abs(targets.mean(0) - 0.5).argmin()].astype(int) if multi else targets.argmax(1)
    held = np.random.default_rng(seed).permutation(len(train)) < len(train) // 4
    if len(set(labels[~held])) < 2 or not held.any():
        return STRENGTHS[0]
    losses = []
    for strength in STRENGTHS:
        fitted = _fit(train[~held], labels[~held], strength)
        known = np.isin(labels[held], fitted.classes_)
        predicted = fitted.predict_proba(train[held])[known]
        column = np.searchsorted(fitted.classes_, labels[held][known])
        losses.append(-np.log(predicted[np.arange(len(predicted)), column] + 1e-9).mean() if known.any() else 0.0)
    return STRENGTHS[int(np.argmin(losses))]


def _fit(rows: np.ndarray, labels: np.ndarray, strength: float, class_weight: str | None = None) -> LogisticRegression:
    # Two threads are ten times slower on problems of this size; weakly regularized fits need not converge to be ranked.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=100, class_weight=class_weight).fit(rows, labels)
