"""k nearest neighbors: cosine similarity, votes weighted by similarity (Wu et al., 2018).

k = 10 and the temperature 0.07 are those of X-ARES (`src/xares/trainer.py`, `KNN`), which doesn't standardize.
"""

from typing import Any

import numpy as np

from src.evaluation.metrics import one_hot
from src.evaluation.problem import Problem, Result
from src.evaluation.scoring import result

NEIGHBORS, TEMPERATURE = 10, 0.07
_BLOCK = 1 << 22  # similarities in memory at a time; 16 bytes each


def knn(
    problem: Problem,
    seed: int = 0,
    chosen: dict[str, Any] | None = None,
    k: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
    standardize: bool = False,
) -> Result:
    """Method of `src.evaluation.problem`; predictions are the shares of the votes. Nothing is chosen or random.

    Args:
        standardize: subtract train's mean and divide by its deviation first.
    """
    train = problem.train.features
    mean, deviation = (train.mean(0), train.std(0) + 1e-6) if standardize else (0.0, 1.0)
    rows, targets = _unit((train - mean) / deviation), one_hot(problem.train.targets, problem.num_classes)

    def predict(features: np.ndarray) -> np.ndarray:
        return _votes(rows, targets, (features - mean) / deviation, k, temperature)

    valid = None if problem.valid is None else predict(problem.valid.features)
    options = {"k": min(k, len(rows)), "temperature": temperature, "metric": "cosine", "standardize": standardize}
    return result(problem, predict(problem.test.features), valid, details=options)


def knn_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, k: int = NEIGHBORS
) -> float:
    """Test accuracy, 0 to 1, of the vote of each row's `k` nearest neighbors in train.

    Args:
        train: (n, D), test: (m, D), standardized. train_labels, test_labels: integers from 0.
        k: number of neighbors; all of train if it has fewer rows.
    """
    targets = one_hot(train_labels, int(train_labels.max()) + 1)
    return float((_votes(_unit(train), targets, test, k, TEMPERATURE).argmax(1) == test_labels).mean())


def _votes(train: np.ndarray, targets: np.ndarray, test: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """Weighted mean (m, C) of the targets (n, C) of each row's neighbors; train of unit length, test of any."""
    k = min(k, len(train))
    size = max(1, _BLOCK // len(train))
    return np.concatenate(
        [_block(train, targets, test[i : i + size], k, temperature) for i in range(0, len(test), size)]
    )


def _block(train: np.ndarray, targets: np.ndarray, test: np.ndarray, k: int, temperature: float) -> np.ndarray:
    similarity = _unit(test) @ train.T  # (m, n)
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    chosen = np.take_along_axis(similarity, nearest, axis=1)
    weight = np.exp((chosen - chosen.max(1, keepdims=True)) / temperature)
    weight /= weight.sum(1, keepdims=True)
    votes = np.zeros((len(test), targets.shape[1]))
    for column in range(k):
        votes += weight[:, column, None] * targets[nearest[:, column]]
    return votes


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
