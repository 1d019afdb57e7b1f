"""k-NN and linear probe of a set of embeddings, and statistics of the embeddings."""

from dataclasses import dataclass

import numpy as np

from src.evaluation.knn import knn_accuracy
from src.evaluation.linear import linear_accuracy


@dataclass(frozen=True)
class ProbeScores:
    """knn, linear: accuracies, 0 to 1. deviation: standard deviation over clips, averaged over dimensions.
    effective_rank: effective number of dimensions, 1 to D."""

    knn: float
    linear: float
    deviation: float
    effective_rank: float


def probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> ProbeScores:
    """Scores of embeddings (n, D) and (m, D), standardized with the train statistics for both probes."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train_rows, test_rows = (train - mean) / deviation, (test - mean) / deviation
    return ProbeScores(
        knn_accuracy(train_rows, train_labels, test_rows, test_labels),
        linear_accuracy(train_rows, train_labels, test_rows, test_labels),
        float(test.std(0).mean()),
        effective_rank(test),
    )


def majority_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of always predicting the most frequent class of train."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def effective_rank(embeddings: np.ndarray) -> float:
    """exp of the entropy of the normalized singular values of centered (n, D) embeddings (Roy and Vetterli, 2007)."""
    singular = np.linalg.svd(embeddings - embeddings.mean(0), compute_uv=False)
    share = singular / max(singular.sum(), 1e-12)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
