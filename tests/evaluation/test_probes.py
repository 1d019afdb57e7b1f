"""Probes against scikit-learn and against cases with known answers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from src.evaluation.embeddings import batches_by_length, calibrate_norm, embed_clips, mel_statistics
from src.evaluation.floors import floors
from src.evaluation.knn import knn_accuracy
from src.evaluation.linear import STRENGTHS, fit_linear, linear_accuracy
from src.evaluation.probes import effective_rank, majority_accuracy, probe
from src.models import create_encoder


def clusters(n, spread, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    centers = np.random.default_rng(0).normal(size=(4, 16))
    return centers[labels] + spread * random.normal(size=(n, 16)), labels


def test_knn_equals_scikit_learn_with_the_same_weights():
    train, labels = clusters(200, 1.5, 1)
    test, test_labels = clusters(100, 1.5, 2)
    reference = KNeighborsClassifier(
        10, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    )
    expected = reference.fit(train, labels).score(test, test_labels)
    assert 0.4 < expected < 1.0
    assert knn_accuracy(train, labels, test, test_labels) == pytest.approx(expected)


def test_probes_distinguish_signal_from_noise():
    train, labels = clusters(200, 0.3, 1)
    test, test_labels = clusters(100, 0.3, 2)
    good = probe(train, labels, test, test_labels)
    assert good.knn == good.linear == 1.0
    noise = probe(np.random.default_rng(3).normal(size=(200, 16)), labels, test, test_labels)
    assert noise.knn < 0.5 and noise.linear < 0.6
    assert linear_accuracy(train, labels, test, (test_labels + 1) % 4) == 0.0


def test_probes_do_not_depend_on_the_scale_of_a_dimension():
    train, labels = clusters(200, 1.0, 1)
    test, test_labels = clusters(100, 1.0, 2)
    scale = np.logspace(-3, 3, 16)
    assert probe(train * scale, labels, test * scale, test_labels).knn == probe(train, labels, test, test_labels).knn


def test_effective_rank_counts_dimensions():
    rows = np.random.default_rng(0).normal(size=(4000, 8))
    assert effective_rank(rows) == pytest.approx(8, abs=0.05)
    assert effective_rank(np.outer(rows[:, 0], np.ones(8))) == pytest.approx(1, abs=1e-6)


def test_majority_is_the_most_frequent_class_of_train():
    assert majority_accuracy(np.array([0, 1, 1]), np.array([1, 0, 0, 0])) == 0.25


def test_batches_have_at_most_max_samples_and_every_clip_once():
    lengths = [5, 100, 7, 30, 30, 2]
    batches = batches_by_length(lengths, 60)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) * max(lengths[i] for i in b) <= 60 or len(b) == 1 for b in batches)
    assert batches[-1] == [1]


def test_embeddings_keep_order_and_mode():
    encoder = create_encoder("tiny")
    random = np.random.default_rng(0)
    waveforms = [random.normal(size=n).astype(np.float32) * 0.1 for n in (9000, 3000, 16000, 500)]
    together = embed_clips(encoder, waveforms, layer=3, pooling="mean_std", batch_seconds=2.0)
    alone = np.concatenate([embed_clips(encoder, [w], layer=3, pooling="mean_std") for w in waveforms])
    assert encoder.training and together.shape == (4, 384)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    torch.set_num_threads(2)  # batches side by side
    try:
        side_by_side = embed_clips(encoder, waveforms, layer=3, pooling="mean_std", batch_seconds=2.0)
        assert encoder.training and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    np.testing.assert_array_equal(side_by_side, together)


def test_mel_statistics_are_mean_and_deviation_of_bands():
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    quiet, loud = mel_statistics([noise * 0.1, noise])
    np.testing.assert_allclose(loud[:64] - quiet[:64], 20.0, atol=1e-3)  # ten times the amplitude is 20 dB
    np.testing.assert_allclose(loud[64:], quiet[64:], atol=1e-3)


def test_calibration_sets_the_statistics_of_the_clips_and_no_weights():
    encoder = create_encoder("tiny")
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    random = np.random.default_rng(0)
    waveforms = [random.normal(size=n).astype(np.float32) * 0.1 for n in (9000, 3000, 16000)]
    calibrate_norm(encoder, waveforms)
    bands = np.concatenate([encoder.log_mel(torch.from_numpy(w)[None])[0][0].numpy() for w in waveforms], axis=1)
    np.testing.assert_allclose(encoder.init_bn.running_mean.numpy(), bands.mean(1), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_parameters())


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_weights_of_logistic_regression_predict_as_scikit_learn(num_classes):
    random = np.random.default_rng(0)
    labels = random.integers(num_classes, size=200)
    rows = random.normal(size=(200, 8)) + 2 * np.eye(num_classes, 8)[labels]
    targets = np.eye(num_classes + 1)[labels]  # the last class has no rows
    weight, bias = fit_linear(rows, targets, multi=False)
    logits = rows @ weight.T + bias
    assert (logits.argmax(1) == labels).mean() > 0.8 and (logits.argmax(1) < num_classes).all()
    references = []
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=500).fit(rows, labels)
        references.append(fitted.predict_proba(rows))
    mine = np.exp(logits - logits.max(1, keepdims=True))[:, :num_classes]
    mine /= mine.sum(1, keepdims=True)
    assert min(np.abs(mine - theirs).max() for theirs in references) < 1e-4


def test_several_classes_per_row_get_a_regression_each():
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 6))
    targets = np.stack([rows[:, 0] > 0, rows[:, 1] > 1, np.ones(300), np.zeros(300)], 1).astype(float)
    weight, bias = fit_linear(rows, targets, multi=True)
    predicted = rows @ weight.T + bias > 0
    assert ((predicted == targets).mean(0) > [0.9, 0.9, 0.99, 0.99]).all()


@pytest.mark.parametrize("seed", range(12))
def test_sets_of_few_clips_are_scored(seed):
    """Any number of classes and clips: no probe fails, and a single class is always predicted."""
    random = np.random.default_rng(seed)
    num_classes, n, m = random.integers(1, 9), random.integers(1, 30), random.integers(1, 9)
    train, test = random.normal(size=(n, 6)), random.normal(size=(m, 6))
    labels, test_labels = random.integers(num_classes, size=n), random.integers(num_classes, size=m)
    scores = probe(train, labels, test, test_labels)
    assert 0 <= scores.knn <= 1 and 0 <= scores.linear <= 1 and np.isfinite(scores.effective_rank)
    several = np.eye(num_classes)[labels]
    several[random.random(several.shape) < 0.2] = 1
    for targets, multi in ((np.eye(num_classes)[labels], False), (several, True)):
        weight, bias = fit_linear(train, targets, multi, balanced=True)
        assert np.isfinite(weight).all() and np.isfinite(bias).all()
        found = floors(train, targets, test, np.eye(num_classes)[test_labels], multi)
        assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize("clips", [3, 5])
def test_eight_classes_of_few_clips_are_told_apart(clips):
    labels = np.arange(8 * clips) % 8
    rows = 10 * np.eye(8)[labels] + 0.1 * np.random.default_rng(0).normal(size=(len(labels), 8))
    assert linear_accuracy(rows, labels, rows, labels) == 1.0


def test_one_class_in_train_is_always_predicted():
    rows, labels = np.random.default_rng(0).normal(size=(6, 3)), np.full(6, 2)
    assert linear_accuracy(rows, labels, rows[:4], np.array([2, 2, 2, 0])) == 0.75
    weight, bias = fit_linear(rows, np.eye(4)[labels], multi=False)
    assert ((rows @ weight.T + bias).argmax(1) == 2).all()


def test_calibration_exchanges_nothing_between_processes(monkeypatch):
    """In the second fold of several processes on GPUs, an all-reduce of CPU tensors fails."""

    def refuse(*_):
        raise AssertionError("a collective")

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", refuse)
    encoder = create_encoder("tiny")
    calibrate_norm(encoder, [np.random.default_rng(0).normal(size=9000).astype(np.float32)])
    assert encoder.init_bn.running_mean.abs().min() > 0
