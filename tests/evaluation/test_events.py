"""Events from token probabilities, and the matching of onsets against mir_eval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.evaluation.events import COLLAR_SECONDS, count_matches, event_report, find_events

mir_eval = pytest.importorskip("mir_eval", reason="mir_eval is a development dependency")

# Token and annotation grids, on which distances of exactly one collar occur, and any float.
ONSETS = st.lists(
    st.one_of(
        st.integers(0, 80).map(lambda i: i * 0.04), st.integers(0, 40).map(lambda i: i / 10), st.floats(0.0, 4.0)
    ),
    max_size=25,
).map(sorted)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(true=ONSETS, predicted=ONSETS, collar=st.sampled_from([0.0, 0.04, 0.1, COLLAR_SECONDS, 1.0, 10.0]))
def test_matching_equals_mir_eval(true, predicted, collar):
    expected = len(mir_eval.util.match_events(true, predicted, collar)) if true and predicted else 0
    assert count_matches(true, predicted, collar) == expected


def test_an_onset_is_matched_once_and_the_matching_is_the_largest():
    assert count_matches([1.0], [0.9, 1.1], 0.2) == 1
    assert count_matches([1.0, 1.3], [0.9, 1.15], 0.2) == 2  # not 1, as when 1.0 takes the closer 1.15
    assert count_matches([], [1.0], 0.2) == count_matches([1.0], [], 0.2) == 0


def test_events_are_runs_of_probable_tokens():
    probabilities = np.zeros((50, 2))
    probabilities[10:20, 0], probabilities[5:8, 1], probabilities[30, 1] = 0.8, 0.9, 1.0  # one token is filtered out
    events = find_events(probabilities, 0.04, ["dog", "cat"])
    assert [(event.label, round(event.onset, 2), round(event.offset, 2)) for event in events] == [
        ("cat", 0.2, 0.32),
        ("dog", 0.4, 0.8),
    ]
    assert [event.probability for event in events] == pytest.approx([0.9, 0.8])


def clips_of_events(num_clips: int) -> tuple[list, list[np.ndarray], list[np.ndarray]]:
    """True events, probabilities and targets of clips; about half of the events are found."""
    random = np.random.default_rng(0)
    events, probabilities, targets = [], [], []
    for _ in range(num_clips):
        begin, found = int(random.integers(5, 30)), random.random() < 0.5
        target = np.zeros((50, 2))
        target[begin : begin + 10, random.integers(2)] = 1
        events.append([(begin * 0.04, begin * 0.04 + 0.4, "dog" if target[:, 0].any() else "cat")])
        targets.append(target)
        probabilities.append((0.8 if found else 0.3) * target)
    return events, probabilities, targets


def test_the_interval_of_events_draws_groups():
    clips = [[value for value in values for _ in range(6)] for values in clips_of_events(20)]
    by_clip = event_report(*clips, 0.04, ["dog", "cat"])
    assert by_clip["scores"]["map"] == 1.0
    assert by_clip == event_report(*clips, 0.04, ["dog", "cat"], [str(i) for i in range(120)])
    by_group = event_report(*clips, 0.04, ["dog", "cat"], [str(i // 6) for i in range(120)])
    assert by_group["scores"] == by_clip["scores"]
    (low, high), (group_low, group_high) = by_clip["intervals"]["onset_f1"], by_group["intervals"]["onset_f1"]
    assert low < by_clip["scores"]["onset_f1"] < high
    assert group_high - group_low > 1.5 * (high - low)  # sqrt(6) times as wide in theory
