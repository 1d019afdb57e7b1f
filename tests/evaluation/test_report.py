"""The report of a classifier: bootstrap intervals over clips and over groups, and class names on the page."""

import re

import numpy as np
import pytest

from src.evaluation.intervals import bootstrap_draws
from src.evaluation.report import intervals, report
from src.evaluation.report_page import report_page

CLASSES = ["dog", "cat", "bird"]


def predictions(num_clips: int, multi: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets and noisy probabilities of `num_clips` clips, (n, C) each."""
    random = np.random.default_rng(seed)
    labels = random.integers(len(CLASSES), size=num_clips)
    targets = np.eye(len(CLASSES))[labels]
    if multi:
        targets = np.maximum(targets, random.random(targets.shape) < 0.3)
    probabilities = 0.3 * targets + random.random(targets.shape)
    return targets, probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("multi", [False, True])
def test_each_clip_in_its_own_group_equals_the_bootstrap_of_clips(multi):
    targets, probabilities = predictions(60, multi)
    groups = [f"group {i}" for i in reversed(range(60))]
    assert intervals(targets, probabilities, multi, groups) == intervals(targets, probabilities, multi)


@pytest.mark.parametrize("multi", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_groups_of_identical_clips_widen_the_interval(multi):
    targets, probabilities = (np.repeat(values, 8, axis=0) for values in predictions(30, multi))
    keys = [f"{i}.wav" for i in range(len(targets))]
    groups = [f"recording {i // 8}" for i in range(len(targets))]
    by_clip = report(keys, targets, probabilities, CLASSES, multi)
    by_group = report(keys, targets, probabilities, CLASSES, multi, groups)
    for name, (low, high) in by_clip["intervals"].items():
        group_low, group_high = by_group["intervals"][name]
        assert group_high - group_low > 1.8 * (high - low)  # sqrt(8) times as wide in theory
    assert by_clip | {"intervals": None} == by_group | {"intervals": None}


def test_a_drawn_group_goes_in_whole():
    groups = ["a", "b", "a", "c", "a"]
    for draw in bootstrap_draws(5, groups):
        counts = np.bincount(draw, minlength=5)
        assert counts[0] == counts[2] == counts[4] and counts[[0, 1, 3]].sum() == 3
    with pytest.raises(ValueError, match="shorter"):
        next(bootstrap_draws(6, groups))


def test_resamples_without_any_label_are_left_out():
    targets, probabilities = predictions(10, multi=True)
    targets[5:] = 0
    low, high = intervals(targets, probabilities, True, ["labeled"] * 5 + ["unlabeled"] * 5)["map"]
    assert 0 < low <= high <= 1


def test_class_names_are_never_parsed_as_formulas():
    names = ["Ba$$in", "a$b_$c", r"US$ \x$"]
    targets, probabilities = predictions(30)
    page = report_page("run", report([str(i) for i in range(30)], targets, probabilities, names, False), {}, {})
    for name in names:
        assert len(re.findall(rf">\s*{re.escape(name)}\s*</text>", page)) == 2  # tick labels of the confusion matrix
        assert f"<td>{name}</td>" in page
