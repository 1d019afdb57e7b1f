"""Linear probe: regularized logistic regression on fixed embeddings; scikit-learn's, and its equal for many labels."""

import warnings
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from src.evaluation.metrics import one_hot, score_rows
from src.evaluation.problem import Part, Problem, Result
from src.evaluation.scoring import choose_postprocessing, maximize, result, score_part

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_MAX_ROWS = 20_000
_NEVER = -10.0  # bias of a class without rows


def linear(problem: Problem, seed: int = 0, chosen: dict[str, Any] | None = None) -> Result:
    """Method of `src.evaluation.problem`: logistic regression on standardized embeddings.

    The inverse regularization strength is the one of `STRENGTHS` with the best primary score on validation; without a
    validation split, with the best accuracy or mean average precision on a random held-out quarter of train. Each fold
    chooses its own. Of more than 20,000 training rows, a random subset is used. Validation rows are never fitted.
    """
    train = _subset(problem.train, seed)
    mean, deviation = train.features.mean(0), train.features.std(0) + 1e-6
    multi, targets = problem.kind == "multilabel", one_hot(train.targets, problem.num_classes)
    rows = (train.features - mean) / deviation

    def predict(weights: tuple[np.ndarray, np.ndarray], part: Part) -> np.ndarray:
        return _probabilities(weights, (part.features - mean) / deviation, multi)

    valid: np.ndarray | None = None
    if problem.valid is None:
        strength = _held_out_strength(problem, rows, targets, seed)
        weights = _weights(rows, targets, multi, strength)
    else:
        fits = {each: _weights(rows, targets, multi, each) for each in STRENGTHS}
        scores = {each: _score(problem, problem.valid, predict(fits[each], problem.valid)) for each in STRENGTHS}
        strength = max(scores, key=scores.__getitem__)
        weights = fits[strength]
        valid = predict(weights, problem.valid)
    details = {"seed": seed, "train_rows": len(rows)}
    return result(problem, predict(weights, problem.test), valid, {"strength": strength}, details)


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
    return _weights(train, targets, multi, _best_strength(train, targets, multi, seed), balanced)


def _weights(
    train: np.ndarray, targets: np.ndarray, multi: bool, strength: float, balanced: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """As `fit_linear`, for a given inverse regularization strength."""
    weight, bias = np.zeros((targets.shape[1], train.shape[1])), np.full(targets.shape[1], _NEVER)
    if multi:
        bias[targets.all(0)] = -_NEVER
        varied = np.flatnonzero(targets.any(0) & ~targets.all(0))
        if len(varied):
            weight[varied], bias[varied] = _fit_each(train, targets[:, varied] > 0, strength, balanced)
        return weight, bias
    labels = targets.argmax(1)
    if len(set(labels.tolist())) == 1:
        bias[labels[0]] = -_NEVER
        return weight, bias
    fitted = _fit(train, labels, strength, "balanced" if balanced else None)
    if len(fitted.classes_) > 2:
        weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    else:  # scikit-learn fits one set of weights for two classes
        half = np.array([-0.5, 0.5])
        weight[fitted.classes_] = half[:, None] * fitted.coef_
        bias[fitted.classes_] = half * fitted.intercept_
    return weight, bias


def _fit_each(rows: np.ndarray, targets: np.ndarray, strength: float, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of a binary logistic regression for each class, all in one matrix product.

    Minimizes scikit-learn's objective, 0.5 |w|^2 + strength * sum of log losses, of all classes together.
    """
    rows = np.asarray(rows, dtype=np.float64)
    (count, num_classes), width = targets.shape, rows.shape[1]
    positive = targets.mean(0)
    share = np.where(targets, 0.5 / positive, 0.5 / (1 - positive)) if balanced else np.ones(1)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: num_classes * width].reshape(num_classes, width), flat[num_classes * width :]
        logits = rows @ weight.T + bias
        loss = strength * (share * (np.logaddexp(0.0, logits) - targets * logits)).sum() + 0.5 * (weight**2).sum()
        error = strength * share * (expit(logits) - targets)
        return loss, np.concatenate([(error.T @ rows + weight).ravel(), error.sum(0)])

    start = np.concatenate([np.zeros(num_classes * width), np.log(positive / (1 - positive))])
    options = {"maxiter": 300, "gtol": 1e-5 * strength * count, "ftol": 1e-12}
    flat = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    return flat[: num_classes * width].reshape(num_classes, width), flat[num_classes * width :]


def _probabilities(weights: tuple[np.ndarray, np.ndarray], rows: np.ndarray, multi: bool) -> np.ndarray:
    logits = rows @ weights[0].T + weights[1]
    return expit(logits) if multi else softmax(logits, axis=1)


def _score(problem: Problem, part: Part, predictions: np.ndarray) -> float:
    """Primary score on validation, higher is better; -inf where it is undefined."""
    primary = problem.metrics[0]
    value = score_part(problem, part, predictions, choose_postprocessing(problem, part, predictions))[0][primary]
    return -np.inf if np.isnan(value) else value * (1 if maximize(primary) else -1)


def _subset(part: Part, seed: int) -> Part:
    if len(part.features) <= _MAX_ROWS:
        return part
    chosen = np.sort(np.random.default_rng(seed).choice(len(part.features), _MAX_ROWS, replace=False))
    return Part(part.features[chosen], part.targets[chosen])


def _held_out_strength(problem: Problem, rows: np.ndarray, targets: np.ndarray, seed: int) -> float:
    metric, multi = ("mAP", True) if problem.kind == "multilabel" else ("top1_acc", False)
    held = np.random.default_rng(seed).permutation(len(rows)) < len(rows) // 4
    scores = []
    for strength in STRENGTHS:
        predictions = _probabilities(_weights(rows[~held], targets[~held], multi, strength), rows[held], multi)
        scores.append(score_rows([metric], targets[held], predictions)[metric])
    return STRENGTHS[int(np.nanargmax(scores))] if not np.isnan(scores).all() else STRENGTHS[0]


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
    # Two threads are ten times slower on problems of this size. After 500 steps the predictions have settled, if not
    # all weights of weakly regularized fits.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=500, class_weight=class_weight).fit(rows, labels)
