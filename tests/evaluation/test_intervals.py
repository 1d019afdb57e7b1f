"""Intervals against theory, and paired comparisons."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from src.evaluation.intervals import bootstrap_samples, mean_interval, percentile_interval, sign_test

RIGHT = np.random.default_rng(0).random(400) < 0.7


def test_the_interval_of_an_accuracy_is_that_of_the_binomial():
    interval = percentile_interval(RIGHT.mean(), bootstrap_samples(lambda rows: RIGHT[rows].mean(), 400))
    exact = binomtest(int(RIGHT.sum()), 400).proportion_ci()
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_paired_differences_are_narrower_than_unpaired_ones():
    other = RIGHT.copy()
    other[:12] = False
    first, second = (bootstrap_samples(lambda rows, each=each: each[rows].mean(), 400) for each in (RIGHT, other))
    paired = percentile_interval(RIGHT.mean() - other.mean(), first - second)
    unpaired = percentile_interval(RIGHT.mean() - other.mean(), first - np.roll(second, 1))
    assert paired.low > 0 > unpaired.low


def test_undefined_samples_are_left_out():
    assert percentile_interval(0.5, np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5, 0.5)
    assert np.isnan(percentile_interval(np.nan, np.array([np.nan])).low)


def test_the_mean_of_repetitions_has_students_interval():
    values = [0.1, 0.4, 0.3, 0.25]
    exact = ttest_1samp(values, 0).confidence_interval()
    assert mean_interval(values) == pytest.approx((0.2625, exact.low, exact.high))
    assert np.isnan(mean_interval([0.5]).low)


def test_the_sign_test_counts_signs_only():
    assert sign_test([0.1] * 8) == pytest.approx(2 / 2**8)
    assert sign_test([9, -0.1, 0.1, -9, 0.0]) == 1.0 == sign_test([0.0]) == sign_test([])
    with pytest.raises(ValueError, match="NaN"):
        sign_test([0.1, np.nan])
