"""The command on made-up tasks: scores, resuming, jobs, errors, comparison."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from src.encoders.save import save_encoder
from src.errors import UserError
from src.evaluate import main
from src.evaluation.compare import compare, read_rows
from src.evaluation.embeddings import mel_statistics
from src.evaluation.frozen import Batch, FrozenViT
from src.evaluation.resample import resample
from src.evaluation.results import write_results
from src.evaluation.run import Settings, evaluate
from src.evaluation.store import embed_task, folder_of, missing, open_rows
from src.evaluation.tasks.open import open_task
from src.evaluation.units import make_problem
from src.evaluation.untrained import MelStatistics, random_patches
from src.models import create_encoder
from src.models.initialize import initialize
from src.models.log_mel import LogMel
from src.models.vit import AudioViT
from tests.evaluation.made_tasks import hear_task, labels_task, write

pytestmark = pytest.mark.usefixtures("two_blocks")


@pytest.fixture
def encoder(two_blocks):
    return FrozenViT("ours", create_encoder("tiny", seed=5), ["0", "last", "0+last"], ["mean", "mean_std"])


def test_views_are_columns_of_one_pass(encoder):
    random = np.random.default_rng(0)
    waveforms = [random.normal(size=n).astype(np.float32) * 0.1 for n in (9000, 3000, 16000)]
    found = encoder.embed(Batch(waveforms), encoder.views(False), False)
    assert set(found) == {
        f"{layers} {pooling}" for layers in ("0", "last", "0+last") for pooling in ("mean", "mean_std")
    }
    width = encoder.encoder.embed_dim
    for waveform, row in zip(waveforms, found["0+last mean"].rows, strict=True):
        alone = encoder.encoder.embed(torch.from_numpy(waveform)[None], layer=[0, None])[0].detach().numpy()
        np.testing.assert_allclose(row, alone, atol=1e-5)
    np.testing.assert_array_equal(found["0+last mean"].rows[:, width:], found["last mean"].rows)
    assert found["0+last mean_std"].rows.shape == (3, 4 * width)


def test_the_fingerprint_sees_what_the_weights_do_not_tell():
    """Heads and front end: embeddings of one network are never those of another."""

    def fingerprint(num_heads=3, **log_mel):
        encoder = AudioViT(48, 2, num_heads, log_mel=LogMel(**log_mel))
        initialize(encoder, 0, "encoder")
        return FrozenViT("a", encoder).fingerprint

    found = [fingerprint(), fingerprint(num_heads=4), fingerprint(f_max=4000.0), fingerprint(floor_db=80.0)]
    assert len(set(found)) == 4 and fingerprint() == found[0]


@pytest.mark.parametrize("option", ["--jobs=0", "--batch-seconds=0", "--batch-seconds=nan"])
def test_numbers_out_of_range_are_refused(tmp_path, capsys, option):
    assert main([str(labels_task(tmp_path / "a")), "--out", str(tmp_path / "out"), option]) == 2
    assert "--batch-seconds must be above 0 and --jobs at least 1" in capsys.readouterr().err


def test_layers_that_are_no_blocks_are_refused(tmp_path, capsys):
    for layers in ("²", "x", "-1"):
        assert main([str(labels_task(tmp_path / f"a{layers}")), "--out", str(tmp_path), f"--layers={layers}"]) == 2
        assert f"{layers} is not a block" in capsys.readouterr().err


def test_results_are_strict_json_and_null_is_undefined(tmp_path):
    values = {"score": math.nan, "samples": (math.inf, 0.5)}
    write_results(tmp_path, {"rows": [], "errors": {}, "options": values, "versions": {}})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["options"] == {"score": None, "samples": [None, 0.5]}
    (tmp_path / "b.json").write_text(json.dumps({"rows": [{"score": None, "samples": [None, 0.5]}]}))
    (read,) = read_rows(tmp_path / "b.json")
    assert math.isnan(read["score"]) and math.isnan(read["samples"][0]) and read["samples"][1] == 0.5


def test_a_long_clip_gives_the_tokens_of_the_whole(encoder):
    waveform = np.random.default_rng(0).normal(size=61 * 16000).astype(np.float32) * 0.1
    (view,) = [each for each in encoder.views(True) if each == "last"]
    found = encoder.embed(Batch([waveform[:16000], waveform]), [view], True)[view]
    with torch.no_grad():
        whole = encoder.encoder(torch.from_numpy(waveform)[None])[0].numpy()
    assert found.counts.tolist() == [25, len(whole)]
    np.testing.assert_allclose(found.rows[25:], whole, atol=1e-4)
    np.testing.assert_allclose(found.times_ms[25:28], [15.0, 55.0, 95.0], atol=1e-4)


def test_embeddings_are_stored_once_and_in_order(tmp_path, encoder):
    task = open_task(str(labels_task(tmp_path / "beeps")))
    assert [each.name for each, _ in missing(task, [encoder, MelStatistics()])] == ["ours", "mel"]
    done = []
    embed_task(task, [encoder, MelStatistics()], 2, 1.0, done.append)
    assert sum(done) == 36 and not missing(task, [encoder, MelStatistics()])
    stored = open_rows(folder_of(task, encoder, "last mean"))
    waveforms = [clip.source.waveform(clip.number) for clip in task.clips]
    np.testing.assert_allclose(
        stored.rows, encoder.embed(Batch(waveforms), ["last mean"], False)["last mean"].rows, atol=1e-5
    )
    other = FrozenViT("other", create_encoder("tiny", seed=6))
    assert folder_of(task, other, "last mean") != folder_of(task, encoder, "last mean")


def test_a_nan_is_said_with_its_clip_and_nothing_is_stored(tmp_path, encoder):
    task = open_task(str(labels_task(tmp_path / "beeps")))
    with torch.no_grad():
        encoder.encoder.norm.weight[0] = torch.nan
    broken = FrozenViT("broken", encoder.encoder)
    with pytest.raises(UserError, match=r"broken gives NaN or infinity for .*\.wav"):
        embed_task(task, [broken], 1)
    assert missing(task, [broken])


def test_odd_sound_is_said_once(tmp_path, encoder):
    task = labels_task(tmp_path / "a")
    for name in ("train-0.wav", "test-0.wav"):
        write(task / name, np.zeros(4800, np.float32))
    with pytest.warns(UserWarning) as said:
        embed_task(open_task(str(task)), [encoder, MelStatistics()], 1)
    names = ", ".join(str(task / name) for name in ("test-0.wav", "train-0.wav"))
    assert [str(each.message) for each in said] == [f"a: 2 clips with digital silence, used as is: {names}"]


def test_mel_statistics_ignore_the_level_of_other_frames():
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    quiet, loud, short = mel_statistics([noise * 0.1, noise, noise[:100]])
    np.testing.assert_allclose(loud[:64] - quiet[:64], 20.0, atol=1e-3)  # ten times the amplitude is 20 dB
    np.testing.assert_allclose(loud[64:], quiet[64:], atol=1e-3)
    np.testing.assert_allclose(short[64:], 0.0, atol=1e-6)  # one frame


def test_untrained_floors_are_calibrated_on_the_task(tmp_path):
    task = open_task(str(labels_task(tmp_path / "beeps")))
    floor = random_patches()
    embed_task(task, [floor], 1)
    rows = np.array(open_rows(folder_of(task, floor, "0 mean_std")).rows)
    assert rows.shape == (36, 2 * 768) and np.abs(rows).max() < 100
    embed_again = random_patches()
    assert folder_of(task, embed_again, "0 mean_std") == folder_of(task, floor, "0 mean_std")


def test_frames_get_the_labels_of_hear(tmp_path):
    task = open_task(str(hear_task(tmp_path / "events", "event", "trainvaltest")))
    floor = MelStatistics()
    embed_task(task, [floor], 1)
    problem = make_problem(task, task.rotations()[0], open_rows(folder_of(task, floor, "mean + deviation")))
    assert problem.test.frames is not None
    clip, times = problem.test.frames.clip, problem.test.frames.time_ms
    for number, events in enumerate(problem.test.frames.events):
        inside = times[clip == number]
        expected = np.zeros((len(inside), 3))
        for event in events:
            expected[(inside >= event.onset * 1000) & (inside <= event.offset * 1000), event.label] = 1
        np.testing.assert_array_equal(problem.test.targets[clip == number], expected)
    assert 0.3 < problem.test.targets.any(1).mean() < 0.5


def strip(rows):
    """Without what may differ between equal runs: durations."""
    return [{**row, "folds": [{**fold, "seconds": 0} for fold in row["folds"]]} for row in rows]


@pytest.mark.slow
def test_rows_do_not_depend_on_jobs_or_on_an_interruption(tmp_path, encoder):
    folders = [labels_task(tmp_path / "env_beeps", "fold", 2), hear_task(tmp_path / "b", "multilabel", "trainvaltest")]
    ours = FrozenViT("ours", encoder.encoder, ["0", "last"])
    tasks, encoders = [str(folder) for folder in folders], [ours, MelStatistics()]
    settings = Settings(["knn", "linear"], tmp_path / "one", shown=False)
    first, errors = evaluate(tasks, encoders, settings)
    assert not errors and len(first) == 2 * (1 + 2 * 2)
    second, _ = evaluate(tasks, encoders, replace(settings, out=tmp_path / "two", jobs=2))
    assert strip(first) == strip(second)
    for file in sorted((tmp_path / "one" / "scores").rglob("*.json"))[::2]:
        file.unlink()
    resumed, _ = evaluate(tasks, encoders, settings)
    assert strip(first) == strip(resumed)
    mel = next(row for row in first if (row["encoder"], row["task"]) == ("mel", "env_beeps"))
    assert mel["score"] == 1.0 and mel["interval"] == [1.0, 1.0] and len(mel["folds"]) == 4
    row = next(row for row in first if row["encoder"] == "ours")
    assert row["candidates"] == ["0 mean", "last mean"] and sum(row["views"].values()) == 4


def test_changed_labels_are_scored_again(tmp_path):
    folder = labels_task(tmp_path / "beeps", per_part=2)
    settings = Settings(["knn"], tmp_path / "out", shown=False)
    before, _ = evaluate([str(folder)], [MelStatistics()], settings)
    swapped = {"low": "high", "high": "low", "noise": "noise"}
    lines = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()]
    changed = [[name, swapped[label] if part == "test" else label, part] for name, label, part in lines[1:]]
    (folder / "labels.csv").write_text("\n".join(",".join(line) for line in [lines[0], *changed]))
    after, _ = evaluate([str(folder)], [MelStatistics()], settings)
    assert before[1]["score"] == 1.0 and after[1]["score"] == pytest.approx(1 / 3)


def test_the_command_writes_tables_and_goes_on_after_a_broken_task(tmp_path, capsys):
    save_encoder(create_encoder("tiny", seed=5), tmp_path / "encoder")
    labels_task(tmp_path / "tasks" / "env_beeps", per_part=2)
    broken = hear_task(tmp_path / "tasks" / "esc50", "multiclass", "trainvaltest", 1)
    (broken / "test.json").write_text("{")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "tasks"), "--method", "knn", "--jobs", "1", "--out", str(out)]
    assert main([*arguments, "--encoder", str(tmp_path / "encoder")]) == 1
    results = json.loads((out / "results.json").read_text())
    assert [row["encoder"] for row in results["rows"]][1:4] == [str(tmp_path / "encoder"), "mel", "random-patches"]
    assert len(results["errors"]) == 1 and "test.json is damaged" in capsys.readouterr().err
    text = (out / "results.md").read_text()
    assert "| env_beeps | top1_acc |" in text and "random-encoder (3 seeds)" in text and "test.json is damaged" in text
    assert "<svg" in (out / "results.html").read_text() and (out / "results.png").stat().st_size > 1000
    assert main(["--compare", str(out / "results.json"), str(out / "results.json")]) == 0
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out
    assert main(["--list", str(tmp_path / "tasks")]) == 0
    assert main([str(tmp_path / "nothing"), "--out", str(out)]) == 1 and main([]) == 2


def row(task, score, samples):
    return {"task": task, "metric": "top1_acc", "score": score, "samples": samples}


def test_differences_are_paired():
    random = np.random.default_rng(0)
    common = random.normal(scale=0.1, size=1000)
    old = [row(name, 0.5, (0.5 + common).tolist()) for name in "abc"]
    new = [row(name, 0.6, (0.6 + common).tolist()) for name in "abd"]
    result = compare(old, new)
    assert set(result.tasks) == {"a", "b"} and (result.better, result.worse) == (2, 0)
    assert result.tasks["a"] == pytest.approx((0.1, 0.1, 0.1)) and result.mean.value == pytest.approx(0.1)


def test_bootstrap_of_average_precision_equals_scikit_learn(monkeypatch):
    from src.evaluation import intervals
    from src.evaluation.metrics import mean_average_precision
    from src.evaluation.problem import Part, Problem, Result

    monkeypatch.setattr("src.evaluation.resample.RESAMPLES", 20)
    random = np.random.default_rng(0)
    targets = (random.random((40, 3)) < 0.3).astype(np.float32)
    predictions = random.integers(5, size=(40, 3)) / 5  # with ties
    part = Part(np.zeros((40, 1), np.float32), targets)
    problem = Problem(part, None, part, "multilabel", 3, ["mAP"])
    samples = resample(problem, Result({}, {}, predictions), None, 3)
    draws = list(intervals.bootstrap_draws(40, None, 3, 20))
    expected = [mean_average_precision(targets[draw], predictions[draw]) for draw in draws]
    np.testing.assert_allclose(samples, expected, atol=1e-12)
