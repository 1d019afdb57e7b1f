"""What pretraining and classification share: signals, what a resume keeps and applies, which weights speak."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import soundfile
import torch

from src import export, train
from src.classification.module import AudioClassification
from src.config.files import load_config
from src.encoders.load import load_classifier, load_encoder
from src.encoders.save import save_encoder
from src.models.initialize import initialize
from src.models.vit import AudioViT
from src.pretraining import run as pretraining
from src.pretraining.module import MAEPretraining

ROOT = Path(__file__).parents[2]
RATE = 16000
PRETRAIN = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), "data.batch_size=8", "data.crop_seconds=1.0",
            "data.window_clips=64", "check.train=null", "check.test=null", "check.layer=null", "check.pooling=mean",
            "trainer.val_check_interval=1000", "data.validation=null", "optimizer.warmup_steps=2",
            "trainer.threads=1", "tracking.wandb=null"]  # fmt: skip
pytestmark = pytest.mark.usefixtures("two_blocks")
slow = pytest.mark.slow
LOGGED = ["trainer.log_every_n_steps=1", "trainer.check_val_every_n_epoch=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small encoder, and 48 tones of two pitches in class folders."""
    folder = tmp_path_factory.mktemp("one-run")
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    encoder.init_bn.running_mean.fill_(-30)
    encoder.init_bn.running_var.fill_(200)
    save_encoder(encoder, folder / "encoder")
    for number in range(48):
        name, hertz = (("low", 300), ("high", 2500))[number % 2]
        time_s = np.arange(round((0.4 + 0.005 * number) * RATE)) / RATE
        noise = np.random.default_rng(number).normal(size=len(time_s))
        (folder / "sounds" / name).mkdir(parents=True, exist_ok=True)
        samples = 0.3 * np.sin(2 * np.pi * hertz * time_s) + 0.02 * noise
        soundfile.write(folder / f"sounds/{name}/{number:02}.wav", samples, RATE)
    return folder


def classify(place: Path, preset: str, *overrides: str) -> list[str]:
    files = ["fit", "--config", str(ROOT / f"configs/classify/{preset}.yaml"), f"data.path={place / 'sounds'}"]
    rest = [f"model.init_from={place / 'encoder'}", f"runs_folder={place / 'runs'}", "trainer.max_epochs=2"]
    return [*files, *rest, "trainer.threads=1", "data.batch_size=8", "classify.pooling=mean", *LOGGED, *overrides]


def pretrain(runs: Path, *overrides: str) -> list[str]:
    return [*PRETRAIN, LOGGED[0], f"runs_folder={runs}", *overrides]


def rows(run: Path, column: str = "train/loss") -> list[tuple[int, str]]:
    if not (run / "metrics.csv").exists():
        return []
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), row[column]) for row in csv.DictReader(file) if row.get(column)]


def start(words: list[str]) -> subprocess.Popen:
    """In a process group of its own, as a shell or a cluster starts a job."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.two_blocks", *words], cwd=ROOT, env=environment, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if max((number for number, _ in rows(run)), default=-1) >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get that far in a minute")


# --- signals


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=slow), pytest.param(signal.SIGUSR1, marks=slow), signal.SIGINT]
)
def test_a_signal_to_the_whole_group_with_workers_alive_saves(tmp_path, number):
    process = start(pretrain(tmp_path, "name=a", "data.num_workers=2", "trainer.max_steps=1000"))
    wait_for_step(tmp_path / "a", 2, process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "--resume auto" in output and "Traceback" not in output
    saved = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == rows(tmp_path / "a")[-1][0] + 1


@pytest.mark.parametrize("workers", [pytest.param(0, marks=slow), 2])
def test_a_classifier_is_preempted_in_mid_epoch_and_ends_as_if_it_had_not_stopped(place, workers):
    """Signal to the whole group; order, crops, augmentation and schedule go on where they were."""
    setting = [f"data.num_workers={workers}", "data.crop_seconds=0.3", "data.batch_size=4", "trainer.max_epochs=4"]
    assert train.main(classify(place, "finetune", f"name=whole-{workers}", *setting)) == 0
    words = classify(place, "finetune", f"name=cut-{workers}", *setting)
    run = place / f"runs/cut-{workers}"
    process = start(words)
    wait_for_step(run, 10, process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert not (run / "report.json").exists()
    assert train.main([*words, "--resume", "auto"]) == 0
    assert rows(run) == rows(place / f"runs/whole-{workers}")
    whole, cut = (
        torch.load(place / f"runs/{name}-{workers}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@slow
@pytest.mark.parametrize("stop_after", [9, 10])
def test_an_epochs_last_batch_is_a_place_to_stop_at_too(place, stop_after, monkeypatch):
    """Nine batches an epoch: after the last one, and after the first of the next."""
    setting = ["data.batch_size=4", "trainer.max_epochs=3", f"name=edge-{stop_after}"]
    assert train.main(classify(place, "finetune", *setting, f"name=edge-{stop_after}-whole")) == 0
    whole = rows(place / f"runs/edge-{stop_after}-whole")
    original = AudioClassification.training_step

    def step(self, batch, batch_idx):
        if self.trainer.global_step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(AudioClassification, "training_step", step)
        assert train.main(classify(place, "finetune", *setting)) == 128 + signal.SIGUSR1
    assert train.main([*classify(place, "finetune", *setting), "--resume", "auto"]) == 0
    assert rows(place / f"runs/edge-{stop_after}") == whole


@slow
def test_two_processes_of_a_classifier_agree_to_stop(place):
    words = classify(place, "finetune", "name=both", "trainer.devices=2", "trainer.accelerator=cpu",
                     "trainer.max_epochs=500", "data.batch_size=4")  # fmt: skip
    process = start(words)
    wait_for_step(place / "runs/both", 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    sent = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - sent < 30, output
    assert (place / "runs/both/checkpoints/last.ckpt").exists() and "Traceback" not in output


# --- resuming


def test_changed_rates_decay_and_schedule_are_applied(tmp_path):
    steady = ["optimizer.warmup_steps=0", "optimizer.final_share=1"]
    assert train.main(pretrain(tmp_path, "name=a", "trainer.max_steps=3", *steady)) == 0
    changes = ["optimizer.lr=2e-3", "optimizer.weight_decay=0.3", "optimizer.betas=[0.5, 0.6]",
               "trainer.gradient_clip_val=1e-6", "objective.mask_ratio=0.5"]  # fmt: skip
    words = pretrain(tmp_path, "name=a", "trainer.max_steps=5", *steady, *changes, "--resume", "auto")
    assert train.main(words) == 0
    rates = [float(value) for _, value in rows(tmp_path / "a", "train/learning_rate")]
    assert rates == pytest.approx([4e-3 / 32] * 3 + [2e-3 / 32] * 2)
    groups = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3]
    assert all(tuple(group["betas"]) == (0.5, 0.6) for group in groups)
    log = (tmp_path / "a/log.txt").read_text()
    for key in ("optimizer.lr", "optimizer.weight_decay", "objective.mask_ratio", "trainer.gradient_clip_val"):
        assert f"changed: {key}" in log


def test_the_cosine_of_a_resumed_run_is_that_of_the_settings(tmp_path):
    """As in a run that had these settings from the start."""
    assert train.main(pretrain(tmp_path, "name=a", "trainer.max_steps=3")) == 0
    assert train.main(pretrain(tmp_path, "name=a", "trainer.max_steps=8", "--resume", "auto")) == 0
    assert train.main(pretrain(tmp_path, "name=b", "trainer.max_steps=8")) == 0
    a, b = (rows(tmp_path / name, "train/learning_rate") for name in "ab")
    assert a[3:] == b[3:] and len(a) == 8


def test_what_would_be_ignored_is_refused_before_anything_is_touched(tmp_path, capsys):
    assert train.main(pretrain(tmp_path, "name=a", "trainer.max_steps=1")) == 0
    before = (tmp_path / "a/config.yaml").read_text()
    assert train.main(pretrain(tmp_path, "name=a", "trainer.max_steps=2", "seed=3", "--resume", "auto")) == 2
    assert "was trained with seed=0, but the settings have seed=3" in capsys.readouterr().err
    assert (tmp_path / "a/config.yaml").read_text() == before


def test_a_resumed_classifier_keeps_its_metrics_its_wandb_run_and_takes_the_path(place):
    words = classify(place, "finetune", "name=kept", "tracking.wandb=offline", "trainer.max_epochs=3",
                     "checkpoint.save_top_k=-1")  # fmt: skip
    assert train.main(words) == 0
    run = place / "runs/kept"
    first = rows(run)
    middle = sorted((run / "checkpoints").glob("step=*.ckpt"), key=lambda path: int(path.stem.split("-")[0][5:]))[0]
    step = torch.load(middle, weights_only=True)["global_step"]
    assert 0 < step < first[-1][0]
    assert train.main([*words, "--resume", str(middle)]) == 0
    assert rows(run) == first  # up to the step it was resumed at, then the same again
    ids = {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")}
    assert len(list(run.glob("wandb/offline-run-*"))) == 2 and len(ids) == 1
    assert not (place / "runs/kept-2").exists()
    assert f"resuming {middle} at step {step}" in (run / "log.txt").read_text()


def test_a_changed_setting_of_a_classifier_is_refused_or_listed(place, capsys):
    words = classify(place, "linear", "name=changed")
    assert train.main(words) == 0
    assert train.main([*words, "classify.pooling=max", "--resume", "auto"]) == 2
    assert "classify.pooling=mean, but the settings have classify.pooling=max" in capsys.readouterr().err
    assert train.main([*words, "trainer.max_epochs=3", "--resume", "auto"]) == 0
    assert "changed: trainer.max_epochs: 2 in the checkpoint, now 3" in (place / "runs/changed/log.txt").read_text()


def test_pictures_show_the_same_clips_after_a_resume():
    config = load_config([str(ROOT / "configs/quickstart.yaml")], ["check.train=null", "check.test=null"])
    first, later = pretraining.prepare_data(config), pretraining.prepare_data(config)
    later.position = 1000
    pairs = zip(pretraining.examples(first, None), pretraining.examples(later, None), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


# --- which weights speak


@pytest.fixture(scope="module")
def trained(place):
    """A classifier whose best checkpoint is not its last."""
    words = classify(place, "finetune", "name=weights", "trainer.max_epochs=4", "checkpoint.monitor=val/loss",
                     "optimizer.lr=0.05")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        original = AudioClassification.on_validation_epoch_end

        def worse_and_worse(self):  # the first validation is the best one
            original(self)
            self.log("val/loss", float(self.current_epoch))

        patch.setattr(AudioClassification, "on_validation_epoch_end", worse_and_worse)
        assert train.main(words) == 0
    return place / "runs/weights"


def weights(path: Path) -> torch.Tensor:
    return load_classifier(path).head[1].weight


def test_report_predict_test_export_and_load_use_the_best_checkpoint(trained, place, capsys):
    best, last = trained / "checkpoints/best.ckpt", trained / "checkpoints/last.ckpt"
    first_step = min(int(path.stem.split("-")[0][5:]) for path in (trained / "checkpoints").glob("step=*.ckpt"))
    assert torch.load(best, weights_only=True)["global_step"] == first_step
    assert not torch.equal(weights(best), weights(last))
    assert torch.equal(weights(trained), weights(best))
    encoder = load_encoder(trained).state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in load_encoder(best).state_dict().items())
    assert export.main([str(trained), "--out", str(trained / "export")]) == 0
    assert torch.equal(weights(trained / "export"), weights(best))
    settings = ["--config", str(trained / "config.yaml")]
    for words, used in (([], "best.ckpt"), (["--checkpoint", "best"], "best.ckpt"), (["--checkpoint", "last"], "last")):
        capsys.readouterr()
        assert train.main(["predict", *settings, f"data.test.path={place / 'sounds'}", *words]) == 0
        assert used in capsys.readouterr().out
    assert train.main(["test", *settings]) == 0
    first, second = (
        json.loads((place / f"runs/{name}/report.json").read_text()) for name in ("weights", "weights-test")
    )
    assert first["scores"] == second["scores"]


def test_predict_takes_the_run_that_the_settings_name_and_names_the_later_one(place, capsys):
    words = classify(place, "linear", "name=two", "trainer.max_epochs=1")
    assert train.main(words) == 0 and train.main(words) == 0
    capsys.readouterr()
    settings = ["--config", str(place / "runs/two/config.yaml")]
    assert train.main(["predict", *settings, f"data.test.path={place / 'sounds'}"]) == 0
    said = capsys.readouterr().out
    assert "runs/two/checkpoints/best.ckpt" in said and "runs/two-2 is a later run of the same name" in said
    assert (place / "runs/two/predictions-new.csv").exists()
    assert not (place / "runs/two-2/predictions-new.csv").exists()


@slow
def test_a_cross_validated_run_predicts_with_the_mean_of_its_folds_or_with_one(place, capsys):
    assert train.main(classify(place, "kfold", "name=folds", "classify.folds=3", "trainer.max_epochs=5")) == 0
    run = place / "runs/folds"
    new = place / "new"
    new.mkdir()
    for name in ("low/00.wav", "high/01.wav"):
        (new / Path(name).name).write_bytes((place / "sounds" / name).read_bytes())
    settings = ["predict", "--config", str(run / "config.yaml"), f"data.test.path={new}"]
    assert train.main(settings) == 0
    assert "the mean of 3 folds" in capsys.readouterr().out
    with open(run / "predictions-new.csv", newline="") as file:
        mean = [float(row["probability_1"]) for row in csv.DictReader(file)]
    each = []
    for fold in (1, 2, 3):
        assert train.main([*settings, "--checkpoint", str(run / f"fold-{fold}")]) == 0
        assert f"fold-{fold}/checkpoints/best.ckpt" in capsys.readouterr().out
        with open(run / f"predictions-new-{fold + 1}.csv", newline="") as file:
            each.append([float(row["probability_1"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=2e-4)


# --- nothing loses the report


def test_without_best_checkpoints_the_last_one_is_reported(place):
    assert train.main(classify(place, "linear", "name=none-best", "checkpoint.save_top_k=0")) == 0
    files = {path.name for path in (place / "runs/none-best/checkpoints").iterdir()}
    assert files == {"last.ckpt"} and (place / "runs/none-best/report.json").exists()


def test_a_loss_of_nan_is_never_the_best(place, monkeypatch):
    original = AudioClassification.on_validation_epoch_end

    def nan_at_first(self):
        original(self)
        if self.current_epoch == 0:
            self.log("val/loss", float("nan"))

    monkeypatch.setattr(AudioClassification, "on_validation_epoch_end", nan_at_first)
    assert train.main(classify(place, "finetune", "name=nan", "checkpoint.save_top_k=5")) == 0
    names = [path.name for path in (place / "runs/nan/checkpoints").glob("step=*")]
    assert len(names) == 1 and "nan" not in names[0] and (place / "runs/nan/report.json").exists()
    monkeypatch.setattr(AudioClassification, "on_validation_epoch_end",
                        lambda self: (original(self), self.log("val/loss", float("nan"))))  # fmt: skip
    assert train.main(classify(place, "finetune", "name=all-nan")) == 0
    assert json.loads((place / "runs/all-nan/report.json").read_text())["scores"]


@pytest.mark.parametrize("task", ["single", "multi"])
def test_a_class_that_validation_lacks_does_not_lose_the_report(place, tmp_path, task):
    lines = ["filename,label,split"]
    for number, path in enumerate(sorted((place / "sounds").rglob("*.wav"))):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        split = ("train", "train", "valid", "test")[number % 4]
        label = path.parent.name if split == "valid" else ("rare" if number % 8 < 2 else path.parent.name)
        lines.append(f"{path.name},{label},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    words = classify(place, "finetune", f"name=lacks-{task}", f"classify.task={task}", f"data.path={tmp_path}",
                     f"data.sources.0.path={tmp_path}", "classify.label_smoothing=0")  # fmt: skip
    assert train.main(words) == 0
    assert (place / f"runs/lacks-{task}/report.html").exists()


# --- the figures of a step, and Lightning's own switches


def test_the_gradient_norm_is_computed_once_a_step(tmp_path, monkeypatch):
    calls = []
    original = torch.nn.utils.get_total_norm
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    words = pretrain(tmp_path, "name=a", "trainer.max_steps=4", "trainer.gradient_clip_val=0.5",
                     "trainer.accumulate_grad_batches=2")  # fmt: skip
    assert train.main(words) == 0
    assert len(calls) == 4 and all(float(value) > 0 for _, value in rows(tmp_path / "a", "train/gradient_norm"))


def test_a_fast_dev_run_tries_everything_and_writes_nothing(tmp_path, place, capsys):
    words = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), f"runs_folder={tmp_path}", "trainer.threads=1",
             "check.layer=null"]  # fmt: skip
    assert train.main([*words, "trainer.fast_dev_run=true"]) == 0
    assert "this encoder" in capsys.readouterr().out
    words = classify(place, "finetune", "trainer.fast_dev_run=2", f"runs_folder={tmp_path}")
    assert train.main(words) == 0
    assert not list(tmp_path.iterdir())


def test_overfitting_repeats_the_same_batches(tmp_path):
    words = pretrain(tmp_path, "name=a", "trainer.max_steps=5", "trainer.overfit_batches=2", "optimizer.lr=0")
    seen = keys_of(words)
    assert seen[0] != seen[1] and seen == [seen[0], seen[1], seen[0], seen[1], seen[0]]
    limited = keys_of(pretrain(tmp_path, "name=b", "trainer.max_steps=5", "trainer.limit_train_batches=2"))
    free = keys_of(pretrain(tmp_path, "name=c", "trainer.max_steps=5"))
    assert limited == free  # an epoch ends after two batches, the next goes on


def keys_of(words: list[str]) -> list[list[str]]:
    seen: list[list[str]] = []
    original = MAEPretraining.training_step

    def step(self, batch, batch_idx):
        seen.append(batch["key"])
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAEPretraining, "training_step", step)
        assert train.main(words) == 0
    return seen


def test_epochs_and_time_say_how_long(tmp_path):
    words = pretrain(tmp_path, "name=a", "trainer.max_steps=-1", "trainer.max_epochs=2",
                     "trainer.limit_train_batches=3")  # fmt: skip
    assert train.main(words) == 0
    assert rows(tmp_path / "a")[-1][0] == 5
    assert train.main(pretrain(tmp_path, "name=b", "trainer.max_steps=100000", "trainer.max_time=00:00:00:02")) == 0
    saved = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert saved == rows(tmp_path / "b")[-1][0] + 1 < 1000


class Counting(L.Callback):
    """A callback of somebody's own."""

    def __init__(self, file: str, word: str = "step") -> None:
        self.file, self.word = file, word

    def on_train_batch_end(self, *_) -> None:
        with open(self.file, "a") as file:
            file.write(f"{self.word}\n")


def test_own_callbacks_by_class_path(tmp_path, capsys):
    own = f"{{class_path: tests.training.test_one_run.Counting, init_args: {{file: {tmp_path}/words, word: now}}}}"
    assert train.main(pretrain(tmp_path / "runs", "name=a", "trainer.max_steps=3", f"callbacks=[{own}]")) == 0
    assert (tmp_path / "words").read_text() == "now\n" * 3
    for path, words in (
        ("no.such.Class", "cannot create"),
        ("pathlib.Path", "is not a lightning.pytorch.Callback"),
        ("tests.training.test_one_run.Counting", "cannot create"),
    ):
        mistake = pretrain(tmp_path / "runs", "name=b", "trainer.max_steps=1", f"callbacks=[{{class_path: {path}}}]")
        assert train.main(mistake) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "runs/b").exists()
