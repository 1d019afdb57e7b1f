"""Sound events from token probabilities, and how well they match the true events."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import median_filter
from sklearn.metrics import average_precision_score

from src.evaluation.intervals import bootstrap_draws
from src.evaluation.problem import Event, Frames
from src.evaluation.report import class_rows

COLLAR_SECONDS = 0.2  # tolerance of an onset (HEAR, Turian et al., 2022)
_MEDIAN_TOKENS = 5  # 200 ms


class PredictedEvent(NamedTuple):
    """onset, offset: in seconds. probability: mean over the event's tokens, 0 to 1."""

    onset: float
    offset: float
    label: str
    probability: float


def find_events(
    probabilities: np.ndarray, hop_seconds: float, class_names: Sequence[str], threshold: float = 0.5
) -> list[PredictedEvent]:
    """Runs of tokens whose median-filtered probability (N, C) reaches the threshold, sorted by onset."""
    smooth = median_filter(probabilities, size=(_MEDIAN_TOKENS, 1), mode="nearest")
    events = []
    for c, name in enumerate(class_names):
        on = np.concatenate([[False], smooth[:, c] >= threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1])
        for begin, end in edges.reshape(-1, 2).tolist():
            probability = float(probabilities[begin:end, c].mean())
            events.append(PredictedEvent(begin * hop_seconds, end * hop_seconds, name, probability))
    return sorted(events)


def hear_events(
    probabilities: np.ndarray, time_ms: np.ndarray, median_filter_ms: float, min_duration: float, threshold: float = 0.5
) -> list[Event]:
    """Events of one clip, sorted by onset, as hear-eval-kit's `create_events_from_prediction` makes them.

    An event is a run of frames whose median-filtered probability exceeds the threshold. It lasts from the time of its
    first frame to that of its last; so a single frame lasts 0 ms.

    Args:
        probabilities: (N, C). time_ms: (N,), increasing.
        median_filter_ms: width of the filter, rounded to frames of the mean distance; 0 is off, and so it is for a
            single frame (where HEAR fails). The upper median is taken of an even number of frames; edges are reflected.
        min_duration: shorter events are dropped, in milliseconds.
    """
    width = round(median_filter_ms / np.diff(time_ms).mean()) if len(time_ms) > 1 else 0
    smooth = median_filter(probabilities, size=(width, 1)) if width else probabilities
    events = []
    for label in range(probabilities.shape[1]):
        on = np.concatenate([[False], smooth[:, label] > threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1])
        for begin, end in edges.reshape(-1, 2).tolist():
            onset, offset = float(time_ms[begin]), float(time_ms[end - 1])
            if offset - onset >= min_duration:
                events.append(Event(onset / 1000.0, offset / 1000.0, label))
    return sorted(events)


def clip_events(
    probabilities: np.ndarray, frames: Frames, median_filter_ms: float, min_duration: float, jobs: int = 1
) -> list[list[Event]]:
    """`hear_events` of each clip of a timestamp task. probabilities: (N, C) of all clips' frames. jobs: threads."""
    bounds = np.searchsorted(frames.clip, np.arange(len(frames.events) + 1))

    def events(clip: int) -> list[Event]:
        rows = slice(bounds[clip], bounds[clip + 1])
        if rows.start == rows.stop:
            return []
        return hear_events(probabilities[rows], frames.time_ms[rows], median_filter_ms, min_duration)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(events, range(len(frames.events))))


def event_report(
    true_events: Sequence[Sequence[tuple[float, float, str]]],
    probabilities: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    hop_seconds: float,
    class_names: Sequence[str],
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Scores of event detection, as plain values like those of `src.evaluation.report`; class rows count tokens.

    Scores: map, the mean average precision over tokens; onset_f1, the macro F1 of onsets matched within 200 ms, over
    classes that occur, with a 95 % bootstrap interval.

    Args:
        true_events: (onset, offset, label) of each clip's events, in seconds.
        probabilities, targets: (N, C) for each clip's tokens.
        groups: of each clip, e.g. its recording; the bootstrap draws groups instead of clips.
    """
    all_targets, all_probabilities = np.concatenate(targets) > 0, np.concatenate(probabilities)
    occurs = all_targets.any(0)
    precision = average_precision_score(all_targets[:, occurs], all_probabilities[:, occurs], average="macro")
    counts = _onset_counts(true_events, probabilities, hop_seconds, class_names)
    samples = [_macro_f1(counts[draw].sum(0)) for draw in bootstrap_draws(len(counts), groups)]
    return {
        "clips": len(true_events),
        "scores": {"map": float(precision), "onset_f1": _macro_f1(counts.sum(0))},
        "intervals": {"onset_f1": [float(value) for value in np.percentile(samples, [2.5, 97.5])]},
        "unit": "tokens of 40 ms",
        "classes": class_rows(all_targets, all_probabilities >= 0.5, list(class_names)),
    }


def count_matches(true_onsets: Sequence[float], predicted_onsets: Sequence[float], collar: float) -> int:
    """Size of the largest one-to-one matching of onsets at most `collar` apart; both sorted, all in seconds.

    Taking the earliest pair that matches is optimal, since all tolerance windows have the same width.
    """
    matches = i = j = 0
    while i < len(true_onsets) and j < len(predicted_onsets):
        if true_onsets[i] < predicted_onsets[j] - collar:
            i += 1
        elif true_onsets[i] > predicted_onsets[j] + collar:
            j += 1
        else:
            matches, i, j = matches + 1, i + 1, j + 1
    return matches


def _onset_counts(true_events, probabilities, hop_seconds: float, class_names: Sequence[str]) -> np.ndarray:
    """(n, C, 3): numbers of matched, true and predicted onsets of each clip and class."""
    counts = np.zeros((len(true_events), len(class_names), 3))
    for clip, (events, row) in enumerate(zip(true_events, probabilities, strict=True)):
        predicted_events = find_events(row, hop_seconds, class_names)
        for c, name in enumerate(class_names):
            true = sorted(event[0] for event in events if event[2] == name)
            predicted = [event.onset for event in predicted_events if event.label == name]
            counts[clip, c] = count_matches(true, predicted, COLLAR_SECONDS), len(true), len(predicted)
    return counts


def _macro_f1(counts: np.ndarray) -> float:
    """Macro F1 from counts (C, 3), over classes with true events."""
    counts = counts[counts[:, 1] > 0]
    return float((2 * counts[:, 0] / (counts[:, 1] + counts[:, 2])).mean()) if len(counts) else 0.0
