"""k-NN, linear, few-shot and trained read-outs on real features: against scikit-learn, and their choices."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from src.errors import UserError
from src.evaluation.fewshot import fewshot
from src.evaluation.knn import knn
from src.evaluation.linear import STRENGTHS, linear
from src.evaluation.mlp import GRID, Predictor, draw_points, hear_mlp
from src.evaluation.problem import Event, Frames, Part, Problem
from src.evaluation.scoring import check_problem
from src.evaluation.xares_mlp import learning_rate_of, xares_mlp

QUICK = {"hidden_dim": [32], "max_epochs": [30], "patience": [3], "lr": [0.01]}
METHODS = [
    knn,
    linear,
    lambda problem, seed: hear_mlp(replace(problem, grid=QUICK), seed, grid_points=2),
    lambda problem, seed: xares_mlp(problem, seed, learning_rate=0.02),
]
NAMES = ["knn", "linear", "mlp", "xares-mlp"]
# Drawn by the code of heareval 2021.1.3 (python -m benchmarks.hear_parity --only scores compares them).
KIT_POINTS = [
    (1, 0.0001, "xavier_normal_"),
    (2, 0.001, "xavier_uniform_"),
    (1, 0.001, "xavier_normal_"),
    (1, 0.00032, "xavier_normal_"),
    (2, 0.00032, "xavier_normal_"),
    (2, 0.00032, "xavier_uniform_"),
    (2, 0.0032, "xavier_normal_"),
    (2, 0.0032, "xavier_uniform_"),
]


@pytest.mark.parametrize("standardize", [False, True])
def test_knn_equals_scikit_learns_weighted_neighbors(demo_problem, standardize):
    train, test = demo_problem.train, demo_problem.test
    mean, deviation = (train.features.mean(0), train.features.std(0)) if standardize else (0, 1)
    reference = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit((train.features - mean) / deviation, train.targets)
    expected = reference.predict_proba((test.features - mean) / deviation)
    result = knn(demo_problem, standardize=standardize)
    np.testing.assert_allclose(result.predictions[:, reference.classes_], expected, atol=1e-4)
    assert result.test["top1_acc"] == (reference.classes_[expected.argmax(1)] == test.targets).mean()


def test_knn_of_several_labels_is_their_weighted_share(tagging_problem):
    result = knn(tagging_problem, k=1)
    assert set(np.unique(result.predictions)) == {0.0, 1.0}
    expected = average_precision_score(tagging_problem.test.targets, result.predictions)
    assert result.test["mAP"] == pytest.approx(expected)


def test_linear_is_the_best_regression_of_scikit_learn_on_validation(demo_problem):
    mean, deviation = demo_problem.train.features.mean(0), demo_problem.train.features.std(0) + 1e-6
    rows = [(p.features - mean) / deviation for p in (demo_problem.train, demo_problem.valid, demo_problem.test)]
    fits = [LogisticRegression(C=c, max_iter=500).fit(rows[0], demo_problem.train.targets) for c in STRENGTHS]
    best = int(np.argmax([fit.score(rows[1], demo_problem.valid.targets) for fit in fits]))
    result = linear(demo_problem)
    assert result.chosen == {"strength": STRENGTHS[best]}
    assert result.test["top1_acc"] == pytest.approx(fits[best].score(rows[2], demo_problem.test.targets))


@pytest.mark.parametrize("balanced", [None, "balanced"])
def test_regressions_of_several_labels_are_those_of_scikit_learn(tagging_problem, balanced):
    from src.evaluation.linear import _fit_each

    rows, targets = tagging_problem.train.features[:, :40] / 10, tagging_problem.train.targets > 0
    weight, bias = _fit_each(rows, targets, 0.1, balanced is not None)
    for c in range(3):
        fitted = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8, class_weight=balanced).fit(rows, targets[:, c])
        np.testing.assert_allclose(rows @ weight[c] + bias[c], fitted.decision_function(rows), atol=0.01)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("kind", ["demo_problem", "tagging_problem"])
def test_methods_beat_chance_and_repeat(method, kind, request):
    problem = request.getfixturevalue(kind)
    first, second = method(problem, 3), method(problem, 3)
    chance = 3 / 13 if kind == "demo_problem" else problem.test.targets.mean() + 0.1
    primary = problem.metrics[0]
    assert first.test[primary] > chance and first.valid[primary] > chance
    assert first.predictions.shape == (len(problem.test.features), problem.num_classes)
    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert first.details == second.details and first.chosen == second.chosen


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_test_rows_change_no_choice(method, demo_problem):
    shuffled = Part(demo_problem.test.features, np.roll(demo_problem.test.targets, 1))
    first, second = method(demo_problem, 0), method(replace(demo_problem, test=shuffled), 0)
    assert first.valid == second.valid and first.details == second.details
    np.testing.assert_array_equal(first.predictions, second.predictions)


@pytest.mark.parametrize("method", [METHODS[0], METHODS[1], METHODS[3]], ids=["knn", "linear", "xares-mlp"])
def test_methods_that_need_no_validation_split_do_without(method, demo_problem):
    result = method(replace(demo_problem, valid=None), 0)
    assert result.valid == {} and result.test["top1_acc"] > 3 / 13


def test_fewshot_repeats_with_new_draws(demo_problem):
    result = fewshot(demo_problem, shots=3, repetitions=5)
    scores = result.details["scores"]["top1_acc"]
    assert len(set(scores)) > 1 and result.test["top1_acc"] == pytest.approx(np.mean(scores))
    low, high = result.details["intervals"]["top1_acc"]
    assert low < result.test["top1_acc"] < high
    assert fewshot(demo_problem, seed=1, shots=3, repetitions=5).details["scores"]["top1_acc"] != scores


def test_fewshot_of_one_row_a_class_is_the_nearest_row():
    points = np.array([[0.0, 1], [1, 0], [-1, -1]], np.float32)
    part = Part(points, np.arange(3))
    problem = Problem(part, None, Part(points * 1.1, np.arange(3)), "multiclass", 3, ["top1_acc"])
    assert fewshot(problem, shots=1, repetitions=2).test == {"top1_acc": 1.0}
    assert fewshot(problem, shots=4, repetitions=2).details["short_classes"] == [0, 1, 2]


def test_fewshot_refuses_what_it_cannot_do(tagging_problem, demo_problem):
    with pytest.raises(UserError, match="one label a clip"):
        fewshot(tagging_problem)
    with pytest.raises(UserError, match=r"\[13\] have no rows"):
        fewshot(replace(demo_problem, num_classes=14))


def test_grid_points_are_those_that_the_kit_draws():
    drawn = [(p["hidden_layers"], p["lr"], p["initialization"]) for p in draw_points(GRID, 8, 42)]
    assert drawn == KIT_POINTS


def test_the_predictor_has_the_kits_layers_and_initial_weights():
    torch.manual_seed(0)
    network = Predictor(100, 7, {**draw_points(GRID, 1, 42)[0], "hidden_layers": 2, "initialization": "xavier_normal_"})
    names = [type(layer).__name__ for layer in network.layers]
    assert names == ["Linear", "BatchNorm1d", "Dropout", "ReLU"] * 2 + ["Linear"]
    first, second, last = (layer.weight for layer in network.layers if isinstance(layer, torch.nn.Linear))
    for weight, gain in ((first, 1.0), (second, 2**0.5), (last, 2**0.5)):
        assert weight.std().item() == pytest.approx(gain * (2 / sum(weight.shape)) ** 0.5, rel=0.05)


def test_other_folds_train_the_chosen_settings_only(demo_problem):
    problem = replace(demo_problem, grid=QUICK)
    first = hear_mlp(problem, grid_points=3)
    other = hear_mlp(problem, chosen=first.chosen)
    assert len(first.details["points"]) == 3 and len(other.details["points"]) == 1
    assert other.chosen == first.chosen
    assert max(point["score"] for point in first.details["points"]) == np.float32(first.valid["top1_acc"])


def test_training_stops_after_patience_and_checks_at_its_interval(demo_problem):
    scrambled = replace(
        demo_problem, valid=Part(demo_problem.valid.features * 0, demo_problem.valid.targets), grid=QUICK
    )
    epochs = [point["epoch"] for point in hear_mlp(scrambled, grid_points=4).details["points"]]
    assert all(epoch % 3 == 2 for epoch in epochs)
    loss = hear_mlp(replace(demo_problem, grid=QUICK, stop_on_score=False), grid_points=1)
    assert loss.details["points"][0]["score"] < 0  # minus the loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": None}, "validation split"),
        ({"grid": {"layers": [1]}}, "unknown layers"),
        ({"grid": {"max_epochs": [2]}}, "nothing is checked"),
        ({"grid": {"initialization": ["zeros"]}}, "zeros"),
        ({"train": Part(np.zeros((1, 128), np.float32), np.zeros(1, int))}, "two training rows"),
    ],
)
def test_mlp_says_what_it_cannot_train(demo_problem, change, message):
    with pytest.raises(UserError, match=message):
        hear_mlp(replace(demo_problem, **change))


def test_a_sound_problem_passes(demo_problem, tagging_problem):
    check_problem(demo_problem)
    check_problem(replace(tagging_problem, valid=None))


NAN = np.zeros((2, 128), np.float32)
NAN[1, 5] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["segment_1s_er"]}, "segment_1s_er.*scene.*mAP"),
        ({"metrics": []}, "no metric"),
        ({"num_classes": 12}, "0 to 12; they must be 0 to 11"),
        ({"valid": Part(np.zeros((0, 128), np.float32), np.zeros(0, int))}, "valid split has no clips"),
        ({"test": Part(NAN, np.zeros(2, int))}, "row 1 of the test embeddings"),
        ({"test": Part(NAN[:1], np.zeros(2, int))}, "shape"),
        ({"test": Part(NAN[:1, :64], np.zeros(1, int))}, "64 values"),
        ({"test": Part(NAN[:1].repeat(2, 0), np.zeros(2, int), Frames(np.zeros(2), np.zeros(2), [[]]))}, "order"),
    ],
)
def test_a_problem_that_cannot_be_scored_is_refused(demo_problem, change, message):
    with pytest.raises(UserError, match=message):
        check_problem(replace(demo_problem, **change))


def test_a_last_batch_of_one_row_is_left_out(demo_problem):
    size = len(demo_problem.train.features) - 1
    assert (
        hear_mlp(replace(demo_problem, grid={**QUICK, "batch_size": [size]}), grid_points=1).test["top1_acc"] > 1 / 13
    )


def test_the_learning_rate_of_xares_falls_with_a_cosine():
    rates = [learning_rate_of(epoch, 10, 1e-3) for epoch in range(10)]
    assert rates[0] == 1e-3 and rates[5] == pytest.approx(5.5e-4) and rates == sorted(rates, reverse=True)
    assert rates[9] > 1e-4 and learning_rate_of(0, 1, 1e-3) == 1e-3


def timestamp_part(problem_part: Part, clips: int) -> Part:
    """Frames of 40 ms: each demo row lasts ten frames, and an event too if it is percussion or speech."""
    labels = np.select([problem_part.targets < 3, np.isin(problem_part.targets, (6, 7))], [0, 1], 2)
    rows = np.arange(len(labels) // clips * clips).repeat(10)
    targets = (labels[rows, None] == np.arange(2)).astype(np.float32)
    per_clip = len(rows) // clips
    clip, time_ms = np.arange(len(rows)) // per_clip, 40.0 * (np.arange(len(rows)) % per_clip)
    events: list[list[Event]] = [[] for _ in range(clips)]
    for start in range(0, len(rows), 10):
        if labels[rows[start]] < 2:
            onset = time_ms[start] / 1000
            events[clip[start]].append(Event(onset, onset + 0.36, int(labels[rows[start]])))
    return Part(problem_part.features[rows], targets, Frames(clip, time_ms, events))


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_methods_find_events(method, demo_problem):
    parts = (timestamp_part(p, 4) for p in (demo_problem.train, demo_problem.valid, demo_problem.test))
    metrics = ["event_onset_200ms_fms", "segment_1s_er"]
    problem = Problem(*parts, "multilabel", 2, metrics, {"median_filter_ms": [40], "min_duration": [200, 5000]})
    result = method(problem, 0)
    assert result.details["postprocessing"] == {"median_filter_ms": 40, "min_duration": 200}  # nothing lasts 5 s
    assert result.test["event_onset_200ms_fms"] > 0.3 and len(result.events) == 4
    if method in (METHODS[0], METHODS[1]):
        with pytest.raises(UserError, match="one value each"):
            method(replace(problem, valid=None), 0)


@pytest.mark.parametrize("count", [4_000, 40_000])
def test_the_memory_of_knn_does_not_grow_with_the_number_of_rows(count):
    """Similarities are computed in blocks: 64 MB whatever the count, beside rows and predictions of 5 MB."""
    random = np.random.default_rng(0)
    part = Part(random.normal(size=(count // 2, 8)).astype(np.float32), random.integers(4, size=count // 2))
    test = Part(random.normal(size=(1000, 8)).astype(np.float32), random.integers(4, size=1000))
    tracemalloc.start()
    knn(Problem(part, None, test, "multiclass", 4, ["top1_acc"]), standardize=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
