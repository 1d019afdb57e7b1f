"""Scores of events that equal sed_eval's (Mesaros et al., 2016) as HEAR uses them: all classes pooled.

HEAR's names and tolerances are those of hear-eval-kit, `heareval/score.py`. Counts are per clip, so that sums over any
choice of clips, e.g. bootstrap draws, give the score of that choice.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from src.evaluation.problem import Event

Clip = Sequence[Event]


@dataclass(frozen=True)
class EventMetric:
    """count: (true, predicted) events of a clip to counts. value: from the counts summed over clips."""

    count: Callable[[Clip, Clip], np.ndarray]
    value: Callable[[np.ndarray], float]
    maximize: bool = True


def count_events(true: Clip, predicted: Clip, collar: float, length_fraction: float | None = None) -> np.ndarray:
    """Numbers of matched, true and predicted events of one clip, (3,).

    Matched: size of the largest one-to-one matching of events of the same class whose onsets differ by at most
    `collar` seconds.

    Args:
        length_fraction: if given, offsets must also differ by at most the larger of `collar` and this fraction of the
            true event's length.
    """
    if not true or not predicted:
        return np.array([0, len(true), len(predicted)])
    reference, estimate = np.array(true), np.array(predicted)
    difference = np.abs(reference[:, None] - estimate[None])  # (true, predicted, onset | offset | label)
    hit = (difference[..., 0] <= collar) & (difference[..., 2] == 0)
    if length_fraction is not None:
        tolerance = np.maximum(collar, length_fraction * (reference[:, 1] - reference[:, 0]))
        hit &= difference[..., 1] <= tolerance[:, None]
    matched = int((maximum_bipartite_matching(csr_array(hit), perm_type="column") >= 0).sum())
    return np.array([matched, len(true), len(predicted)])


def f_measure(counts: np.ndarray) -> float:
    """F1 of (matched, true, predicted), 0 to 1; NaN without true or without predicted events, as sed_eval's."""
    matched, true, predicted = counts
    if not true or not predicted:
        return float("nan")
    return float(2 * matched / (true + predicted))


def count_segments(true: Clip, predicted: Clip, seconds: float) -> np.ndarray:
    """Errors and true labels in one clip's segments of `seconds` length, (2,).

    A class is active in each segment that one of its events touches. A segment's errors are substitutions, deletions
    and insertions: the larger of its numbers of true and of predicted classes, minus the number of correct ones.
    """
    length = max((math.ceil(event.offset / seconds) for event in (*true, *predicted)), default=0)
    classes = 1 + max((event.label for event in (*true, *predicted)), default=0)
    active = np.zeros((2, length, classes), dtype=bool)
    for roll, events in zip(active, (true, predicted), strict=True):
        for event in events:
            roll[math.floor(event.onset / seconds) : math.ceil(event.offset / seconds), event.label] = True
    errors = active.sum(2).max(0) - (active[0] & active[1]).sum(1)
    return np.array([errors.sum(), active[0].sum()])


def error_rate(counts: np.ndarray) -> float:
    """Errors per true label of (errors, true labels), 0 is best, may exceed 1; NaN without true labels."""
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


EVENT_METRICS: dict[str, EventMetric] = {
    "event_onset_200ms_fms": EventMetric(lambda true, predicted: count_events(true, predicted, 0.2), f_measure),
    "event_onset_50ms_fms": EventMetric(lambda true, predicted: count_events(true, predicted, 0.05), f_measure),
    "event_onset_offset_50ms_20perc_fms": EventMetric(
        lambda true, predicted: count_events(true, predicted, 0.05, 0.2), f_measure
    ),
    "segment_1s_er": EventMetric(
        lambda true, predicted: count_segments(true, predicted, 1.0), error_rate, maximize=False
    ),
}


def clip_counts(name: str, true: Sequence[Clip], predicted: Sequence[Clip], jobs: int = 1) -> np.ndarray:
    """Counts of the metric `name` for each clip, (clips, 2 or 3). jobs: threads."""
    with ThreadPoolExecutor(jobs) as pool:
        return np.stack(list(pool.map(EVENT_METRICS[name].count, true, predicted)))


def score_events(
    names: Sequence[str], true: Sequence[Clip], predicted: Sequence[Clip], jobs: int = 1
) -> dict[str, float]:
    """Value of each metric in `names`, keys of `EVENT_METRICS`; events of each clip."""
    return {name: EVENT_METRICS[name].value(clip_counts(name, true, predicted, jobs).sum(0)) for name in names}
