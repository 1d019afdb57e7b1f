"""HEAR's events and their scores: cases worked out by hand, and sed_eval on random ones."""

import numpy as np
import pytest

from src.evaluation.event_scores import EVENT_METRICS, clip_counts, count_segments, error_rate, score_events
from src.evaluation.events import clip_events, hear_events
from src.evaluation.problem import Event, Frames

NAMES = list(EVENT_METRICS)


def runs(*spans: tuple[int, int], frames: int = 50) -> np.ndarray:
    probabilities = np.zeros((frames, 1), np.float32)
    for begin, end in spans:
        probabilities[begin:end] = 0.9
    return probabilities


def test_an_event_lasts_from_the_first_to_the_last_frame():
    time_ms = 15.0 + 40.0 * np.arange(50)
    assert hear_events(runs((10, 20), (30, 31)), time_ms, 0, 0) == [Event(0.415, 0.775, 0), Event(1.215, 1.215, 0)]
    assert hear_events(runs((10, 20), (30, 31)), time_ms, 0, 360) == [Event(0.415, 0.775, 0)]  # exactly 360 ms
    assert hear_events(runs((10, 20)), time_ms, 0, 361) == []


def test_the_filter_is_a_median_over_rounded_frames_and_the_threshold_is_exclusive():
    time_ms = 40.0 * np.arange(50)
    assert hear_events(runs((10, 12), (13, 16), (30, 31)), time_ms, 120, 0) == [Event(0.4, 0.6, 0)]
    assert hear_events(runs((10, 11)), time_ms, 19, 0) == [Event(0.4, 0.4, 0)]  # rounds to no frame: off
    assert hear_events(np.full((50, 1), 0.5, np.float32), time_ms, 0, 0) == []
    assert hear_events(runs((0, 1), frames=1), time_ms[:1], 250, 0) == [Event(0.0, 0.0, 0)]


def test_clips_without_frames_or_events_stay_in_place():
    frames = Frames(np.array([0, 0, 2, 2]), np.array([0.0, 40, 0, 40]), [[], [], []])
    events = clip_events(np.ones((4, 1), np.float32), frames, 0, 0, jobs=2)
    assert events == [[Event(0.0, 0.04, 0)], [], [Event(0.0, 0.04, 0)]]


def test_matching_is_one_to_one_by_class_onset_and_offset():
    true = [[Event(1.0, 2.0, 0), Event(1.1, 3.0, 0), Event(5.0, 6.0, 1)]]
    predicted = [[Event(1.15, 2.0, 0), Event(5.0, 6.0, 0), Event(5.04, 6.15, 1)]]
    scores = score_events(NAMES, true, predicted)
    assert scores["event_onset_200ms_fms"] == pytest.approx(2 * 2 / 6)
    assert scores["event_onset_50ms_fms"] == pytest.approx(2 * 2 / 6)  # 1.15 takes 1.1
    assert scores["event_onset_offset_50ms_20perc_fms"] == pytest.approx(2 * 1 / 6)  # of a length of 1 s


def test_segments_count_substitutions_once():
    true, predicted = [Event(0.2, 1.5, 0)], [Event(0.2, 0.8, 1), Event(1.2, 2.5, 0)]
    assert count_segments(true, predicted, 1.0).tolist() == [2, 2]  # substituted, right, inserted
    assert error_rate(np.array([2, 2])) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_scores_without_events_are_undefined(name):
    assert np.isnan(score_events([name], [[]], [[]])[name])
    assert np.isnan(score_events([name], [[]], [[Event(0.0, 1.0, 0)]])[name])


def test_counts_of_clips_add_up_for_any_number_of_threads():
    true = [[Event(1.0, 2.0, 0)], [], [Event(1.0, 2.0, 1)]]
    counts = clip_counts("event_onset_200ms_fms", true, true, jobs=3)
    assert counts.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]


def test_scores_equal_those_of_sed_eval():
    sed_eval = pytest.importorskip(
        "sed_eval", reason="sed_eval is not in the dev extra: it needs setuptools<81, librosa and numba"
    )
    random = np.random.default_rng(0)
    onsets = {"event_onset_200ms_fms": (0.2, False), "event_onset_50ms_fms": (0.05, False)}
    onsets["event_onset_offset_50ms_20perc_fms"] = (0.05, True)
    for _ in range(10):
        clips = [[random_events(random) for _ in range(3)] for _ in range(2)]
        references = {
            name: sed_eval.sound_event.EventBasedMetrics(
                ["0", "1"], evaluate_offset=offset, t_collar=collar, percentage_of_length=0.2
            )
            for name, (collar, offset) in onsets.items()
        }
        references["segment_1s_er"] = sed_eval.sound_event.SegmentBasedMetrics(["0", "1"], time_resolution=1.0)
        scores = score_events(NAMES, *clips)
        for name, reference in references.items():
            for true, predicted in zip(*clips, strict=True):
                reference.evaluate(as_dictionaries(true), as_dictionaries(predicted))
            overall = reference.results_overall_metrics()
            error = name == "segment_1s_er"
            expected = overall["error_rate"]["error_rate"] if error else overall["f_measure"]["f_measure"]
            assert scores[name] == pytest.approx(expected), name


def random_events(random) -> list[Event]:
    """Events on a grid, on which distances of exactly one tolerance occur."""
    onsets = random.integers(0, 100, size=12) * 0.05
    lengths = random.integers(1, 30, size=12) * 0.05
    return [
        Event(float(o), float(o + n), int(c))
        for o, n, c in zip(onsets, lengths, random.integers(2, size=12), strict=True)
    ]


def as_dictionaries(events: list[Event]) -> list[dict]:
    return [
        {"event_onset": e.onset, "event_offset": e.offset, "event_label": str(e.label), "file": "clip"} for e in events
    ]
