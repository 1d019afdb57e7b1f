"""Metrics against scikit-learn, and their edge cases."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from src.evaluation.metrics import METRICS, score_rows

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.random((80, 5)) < 0.3
PREDICTIONS = RANDOM.random((80, 5)).round(1)  # with ties


def test_means_over_classes_are_those_of_scikit_learn():
    scores = score_rows(["mAP", "aucroc", "d_prime"], TARGETS, PREDICTIONS)
    areas = roc_auc_score(TARGETS, PREDICTIONS, average=None)
    assert scores["mAP"] == pytest.approx(average_precision_score(TARGETS, PREDICTIONS))
    assert scores["aucroc"] == pytest.approx(areas.mean())
    assert scores["d_prime"] == pytest.approx((np.sqrt(2) * norm.ppf(areas)).mean())


@pytest.mark.parametrize("name", METRICS)
def test_class_indices_and_one_hot_rows_score_the_same(name):
    labels = RANDOM.integers(5, size=80)
    assert METRICS[name](labels, PREDICTIONS) == METRICS[name](np.eye(5)[labels], PREDICTIONS)


def test_accuracies():
    predictions = np.eye(24)[[0, 13, 5, 23]]
    assert METRICS["pitch_acc"](np.array([0, 1, 5, 10]), predictions) == 0.5
    assert METRICS["chroma_acc"](np.array([0, 1, 5, 10]), predictions) == 0.75  # 13 is 1 an octave higher
    assert METRICS["top1_acc"](np.array([0]), np.zeros((1, 3))) == 1.0  # ties go to the lower class


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["mAP", "aucroc", "d_prime"])
def test_classes_that_do_not_occur_are_left_out(name):
    absent = np.concatenate([TARGETS, np.zeros((80, 2))], 1)
    extended = np.concatenate([PREDICTIONS, RANDOM.random((80, 2))], 1)
    assert METRICS[name](absent, extended) == METRICS[name](TARGETS, PREDICTIONS)
    assert np.isnan(METRICS[name](np.zeros((80, 5)), PREDICTIONS))


def test_a_class_in_all_rows_has_a_precision_but_no_curve():
    everywhere = np.ones((80, 1))
    assert METRICS["mAP"](everywhere, PREDICTIONS[:, :1]) == 1.0
    assert np.isnan(METRICS["aucroc"](everywhere, PREDICTIONS[:, :1]))


def test_perfect_separation_has_infinite_d_prime():
    assert METRICS["d_prime"](np.array([[1, 0], [0, 1]]), np.array([[0.9, 0.1], [0.2, 0.8]])) == np.inf


@pytest.mark.parametrize("name", METRICS)
def test_no_rows_have_no_score(name):
    assert np.isnan(METRICS[name](np.zeros(0, dtype=int), np.zeros((0, 3))))
