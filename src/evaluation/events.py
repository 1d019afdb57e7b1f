"""Events in time from probabilities of tokens, and how well they agree with the true ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mir_eval
import numpy as np
from scipy.ndimage import median_filter
from sklearn.metrics import average_precision_score

from src.evaluation.report import class_rows

COLLAR_SECONDS = 0.2  # by which an onset may be off (HEAR, Turian et al., 2022)
_MEDIAN_TOKENS = 5  # 200 ms


class FoundEvent(NamedTuple):
    """In seconds; probability: mean over the event."""

    onset: float
    offset: float
    label: str
    probability: float


def find_events(
    probabilities: np.ndarray, hop_seconds: float, class_names: Sequence[str], threshold: float = 0.5
) -> list[FoundEvent]:
    """Stretches of tokens (N, C) whose median-filtered probability reaches the threshold, by onset."""
    smooth = median_filter(probabilities, size=(_MEDIAN_TOKENS, 1), mode="nearest")
    found = []
    for c, name in enumerate(class_names):
        on = np.concatenate([[False], smooth[:, c] >= threshold, [False]])
        edges = np.flatnonzero(on[1:] != on[:-1])
        for begin, end in edges.reshape(-1, 2).tolist():
            chance = float(probabilities[begin:end, c].mean())
            found.append(FoundEvent(begin * hop_seconds, end * hop_seconds, name, chance))
    return sorted(found)


def event_report(
    truth: Sequence[Sequence[tuple[float, float, str]]],
    probabilities: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    hop_seconds: float,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Plain values as `src.evaluation.report` gives; the rows of the classes count tokens.

    Scores: map, mean average precision of tokens; onset_f1, of events whose onset is met within 200 ms (mir_eval's
    matching), macro F1 over classes that occur, with a 95 % interval over resampled clips.

    Args:
        truth: events (onset, offset, label) of each clip. probabilities, targets: (N, C) of each clip's tokens.
    """
    every, chance = np.concatenate(targets) > 0, np.concatenate(probabilities)
    there = every.any(0)
    precision = average_precision_score(every[:, there], chance[:, there], average="macro")
    counts = _onset_counts(truth, probabilities, hop_seconds, class_names)
    random = np.random.default_rng(0)
    draws = [_macro_f1(counts[random.integers(len(counts), size=len(counts))].sum(0)) for _ in range(1000)]
    return {
        "clips": len(truth),
        "scores": {"map": float(precision), "onset_f1": _macro_f1(counts.sum(0))},
        "intervals": {"onset_f1": [float(value) for value in np.percentile(draws, [2.5, 97.5])]},
        "unit": "tokens of 40 ms",
        "classes": class_rows(every, chance >= 0.5, list(class_names)),
    }


def _onset_counts(truth, probabilities, hop_seconds: float, class_names: Sequence[str]) -> np.ndarray:
    """(n, C, 3): onsets that were met, true ones, found ones, of each clip and class."""
    counts = np.zeros((len(truth), len(class_names), 3))
    for clip, (events, row) in enumerate(zip(truth, probabilities, strict=True)):
        found = find_events(row, hop_seconds, class_names)
        for c, name in enumerate(class_names):
            true = np.array(sorted(event[0] for event in events if event[2] == name))
            said = np.array([event.onset for event in found if event.label == name])
            matched = len(mir_eval.util.match_events(true, said, COLLAR_SECONDS)) if len(true) and len(said) else 0
            counts[clip, c] = matched, len(true), len(said)
    return counts


def _macro_f1(counts: np.ndarray) -> float:
    """(C, 3) counts; classes without true events are left out."""
    counts = counts[counts[:, 1] > 0]
    return float((2 * counts[:, 0] / (counts[:, 1] + counts[:, 2])).mean()) if len(counts) else 0.0
