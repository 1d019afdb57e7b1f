"""Uncertainty of scores: bootstrap over clips, paired differences, a sign test over tasks, intervals of repetitions."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

RESAMPLES = 1000
Score = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    """low, high: of 95 %, around `value`."""

    value: float
    low: float
    high: float


def bootstrap_draws(
    num_clips: int, groups: Sequence[str] | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield indices of the clips in each resample with replacement: of clips, or of whole groups of clips."""
    random = np.random.default_rng(seed)
    if groups is None:
        for _ in range(resamples):
            yield random.integers(num_clips, size=num_clips)
        return
    clips_of: dict[str, list[int]] = {}
    for clip, group in zip(range(num_clips), groups, strict=True):
        clips_of.setdefault(group, []).append(clip)
    members = [np.array(clips) for clips in clips_of.values()]
    for _ in range(resamples):
        yield np.concatenate([members[group] for group in random.integers(len(members), size=len(members))])


def bootstrap_samples(
    score: Score, num_clips: int, groups: Sequence[str] | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Scores of the resamples of a test set, (resamples,).

    The same `num_clips`, `groups` and `seed` draw the same clips: the difference of two encoders' samples is paired.
    The mean of several tasks' samples is a sample of the mean, if each task has a seed of its own.

    Args:
        score: from indices of clips, with repetitions, to the score of these clips.
    """
    return np.array([score(draw) for draw in bootstrap_draws(num_clips, groups, seed, resamples)])


def percentile_interval(value: float, samples: np.ndarray) -> Interval:
    """95 % percentile interval (Efron and Tibshirani, 1993) of a score or a difference `value`.

    Samples that are NaN (e.g. a resample without any positive) are left out; if all are, the bounds are NaN.
    """
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of repetitions with its 95 % interval of Student's t; NaN bounds for fewer than two repetitions."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the sign test of paired differences, e.g. of two encoders on each task.

    Zeros are left out; 1.0 if nothing is left. With five tasks or fewer, p is never below 0.05.

    Raises:
        ValueError: a difference is NaN.
    """
    values = np.asarray(differences, dtype=float)
    if np.isnan(values).any():
        raise ValueError("a difference is NaN; leave out tasks that have no score")
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
