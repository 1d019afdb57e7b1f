"""What is watched in a run: memory, arithmetic, waiting, hours a source; and skipped steps."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src import train
from src.data.pad import pad
from src.errors import UserError
from src.pretraining.module import MAEPretraining
from src.training.callbacks.bad_clips import BadClips
from src.training.callbacks.bad_steps import SkipBadSteps
from src.training.callbacks.step_figures import StepFigures, peak_flops

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("two_blocks")
DEMO = "kind: huggingface, path: data/demo"
SMALL = ["trainer.log_every_n_steps=1", "data.batch_size=8", "data.crop_seconds=1.0", "data.window_clips=64",
         f"data.sources=[{{{DEMO}, split: train, weight: 3}}, {{{DEMO}, split: validation}}]", "check.train=null",
         "check.test=null", "trainer.val_check_interval=1000", "data.validation=null", "tracking.wandb=null",
         "optimizer.warmup_steps=2", "trainer.threads=1", "model.drop_path=0.1", "checkpoint.every_n_train_steps=6",
         "trainer.max_steps=12", "trainer.accelerator=cpu"]  # fmt: skip


def arguments(runs, *overrides, name="a", resume=None):
    command = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), *SMALL, f"runs_folder={runs}", f"name={name}"]
    return [*command, *overrides, *(["--resume", resume] if resume else [])]


def rows(runs, name="a"):
    with open(Path(runs, name, "metrics.csv"), newline="") as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def spoiled(monkeypatch, steps, value=float("nan")):
    """The loss of these steps (1 is the first) is `value`, and its gradients with it."""
    original = MAEPretraining.training_step

    def training_step(self, batch, batch_index):
        loss = original(self, batch, batch_index)
        if self.trainer.global_step + 1 not in steps:
            return loss
        spoiled = loss * value
        self.log("train/loss", spoiled.detach())
        return spoiled

    monkeypatch.setattr(MAEPretraining, "training_step", training_step)


def test_a_row_says_how_the_run_goes(tmp_path):
    assert train.main(arguments(tmp_path)) == 0
    last = {key: value for key, value in rows(tmp_path)[-1].items() if key.startswith("watch/")}
    hours = [float(last.pop(f"watch/hours_source_{number}")) for number in range(2)]
    assert hours[0] > 2 * hours[1] > 0
    assert sum(hours) == pytest.approx(float(rows(tmp_path)[-1]["train/audio_hours"]), rel=1e-4)
    values = {key: float(value) for key, value in last.items()}
    assert 0 <= values.pop("watch/data_wait_share") < 1
    assert 0.3 < values.pop("watch/memory_gigabytes") < 10
    assert 1e-4 < values.pop("watch/tflops") < 10
    assert not values  # no GPU: no MFU; one process: none is the slowest


@pytest.mark.parametrize("pad_seconds", [None, 10.0])
def test_padding_is_not_counted_as_heard(pad_seconds):
    """Clips of 1, 2 and 12 s, cut to 10 s where they are padded to it: 13 s, or 15 s as they are."""
    batch = pad([torch.zeros(16000 * seconds) for seconds in (1, 2, 12)], pad_seconds)
    figures = StepFigures()
    figures._step_end = figures._paused = figures._waited = 0.0
    figures.on_train_batch_start(SimpleNamespace(), None, batch, 0)
    assert figures.state_dict()["samples"] == [16000 * (15 if pad_seconds is None else 13)]


def test_a_bad_step_leaves_the_weights_and_statistics_as_they_were(tmp_path, monkeypatch):
    """A run whose step 5 is spoiled ends with finite losses, and with all of what that step would have changed."""
    seen = {}

    def remember(self, trainer, module, *_):
        seen[trainer.global_step] = {k: v.clone() for k, v in module.state_dict().items() if "validation" not in k}

    monkeypatch.setattr(SkipBadSteps, "on_train_batch_end", remember, raising=False)
    spoiled(monkeypatch, {5})
    assert train.main(arguments(tmp_path)) == 0
    assert seen[4].keys() == seen[5].keys() and len(seen[4]) > 50
    for key, value in seen[4].items():
        assert torch.equal(value, seen[5][key]), key
    assert not torch.equal(seen[5]["model.decoder.mask_token"], seen[6]["model.decoder.mask_token"])
    losses = [float(row["train/loss"]) for row in rows(tmp_path)]
    assert len(losses) == 12 and math.isnan(losses[4]) and all(map(math.isfinite, losses[:4] + losses[5:]))
    assert [row["train/skipped_steps"] for row in rows(tmp_path)] == ["0.0"] * 4 + ["1.0"] * 8
    with open(tmp_path / "a" / "skipped_steps.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 8 and {(row["step"], row["reason"]) for row in listed} == {("5", "the loss is nan")}
    assert "step 5 is skipped: the loss is nan" in (tmp_path / "a" / "log.txt").read_text()


def test_too_many_bad_steps_in_a_row_stop_the_run(tmp_path, monkeypatch, capsys):
    spoiled(monkeypatch, {3, 5, 6, 7, 8, 9})
    assert train.main(arguments(tmp_path, "trainer.skip_bad_steps=2")) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "3 steps in a row" in error[0] and "skipped_steps.csv" in error[0]
    assert len(rows(tmp_path)) == 6 and rows(tmp_path)[-1]["train/skipped_steps"] == "3.0"


def test_a_resume_after_a_skipped_step_is_exact(tmp_path, monkeypatch):
    spoiled(monkeypatch, {5, 8})
    assert train.main(arguments(tmp_path, "trainer.max_steps=6", "optimizer.final_share=1.0", name="cut")) == 0
    assert train.main(arguments(tmp_path, "optimizer.final_share=1.0", name="flat")) == 0
    assert train.main(arguments(tmp_path, "optimizer.final_share=1.0", name="cut", resume="auto")) == 0
    flat, cut = ([row["train/loss"] for row in rows(tmp_path, name)] for name in ("flat", "cut"))
    assert flat == cut
    for name in ("watch/hours_source_0", "train/audio_hours", "train/skipped_steps"):
        assert rows(tmp_path, "cut")[-1][name] == rows(tmp_path, "flat")[-1][name]


def judged(losses, norms=None) -> list[str]:
    guard, reasons = SkipBadSteps(Path("none"), 3), []
    for number, value in enumerate(losses):
        loss, norm = torch.tensor(value), torch.tensor(norms[number] if norms else 1.0)
        verdict, mean = guard.judge(loss, norm), float(guard._state[3])
        reasons.append(guard.reason(float(verdict), value, float(norm), mean) if verdict else "")
        guard.remember(loss, verdict)
        guard.load_state_dict(json.loads(json.dumps(guard.state_dict())))  # a resume changes nothing
    return reasons


def test_a_jump_is_told_from_noise_and_from_a_falling_loss():
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(3000, generator=random).mul(0.05).add(1.0).tolist()
    assert not any(judged(noise))
    falling = [1 / math.sqrt(1 + step / 20) + 0.02 * value for step, value in enumerate(noise)]
    assert not any(judged(falling))
    reasons = judged([*noise[:500], 2.0, *noise[500:600]])
    assert [i for i, reason in enumerate(reasons) if reason] == [500] and "8 deviations" in reasons[500]
    assert not any(judged([5.0, 1.0, 1.0, 9.0, 1.0]))  # too early to tell
    assert judged([1.0, 1.0], [1.0, math.inf])[1] == "the gradient norm is inf"


@pytest.mark.parametrize(
    "name, precision, tflops",
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989), ("NVIDIA H100 PCIe", "bf16-mixed", 756),
        ("NVIDIA H200", "bf16-mixed", 989), ("NVIDIA A100-SXM4-40GB", "bf16-mixed", 312),
        ("NVIDIA L40S", "bf16-mixed", 362), ("NVIDIA H100 80GB HBM3", "32-true", None),
        ("Some New Thing", "bf16-mixed", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu_is_known_or_left_out(monkeypatch, name, precision, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), precision) == (tflops and tflops * 1e12)
    assert peak_flops(torch.device("cpu"), precision) is None


def test_processes_agree_before_bad_clips_stop_them(tmp_path):
    """A process alone would leave the others waiting for it."""
    asked = []
    strategy = SimpleNamespace(
        broadcast=lambda value: value,
        reduce_boolean_decision=lambda mine, all: asked.append(mine) or len(asked) == 2,
    )
    trainer = SimpleNamespace(strategy=strategy, world_size=2, global_rank=1, is_global_zero=False)
    callback = BadClips(tmp_path / "skipped.csv", [], 0.1)
    callback.setup(trainer, None, "fit")
    good = {"key": ["a"] * 8, "bad": []}
    with pytest.raises(UserError, match="max_bad_share"):
        for number in range(100):
            callback.on_train_batch_end(trainer, None, None, good, number)
    assert number == 2 * BadClips.agree_every - 1 and asked == [False, False]


TWO_PROCESSES = """
import sys
from src.pretraining.module import MAEPretraining
original = MAEPretraining.training_step

def training_step(self, batch, batch_index):  # the second process alone meets a bad gradient
    loss = original(self, batch, batch_index)
    return loss * float("inf") if self.global_rank == 1 and self.trainer.global_step + 1 == 3 else loss

MAEPretraining.training_step = training_step
from src.train import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_skip_together_and_the_slowest_is_named(tmp_path):
    (tmp_path / "spoil.py").write_text(TWO_PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(tmp_path / "spoil.py"), *arguments(tmp_path, "trainer.max_steps=6", "trainer.devices=2")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path)
    assert [row["train/skipped_steps"] for row in found] == ["0.0"] * 2 + ["1.0"] * 4
    assert all(math.isfinite(float(row["train/loss"])) for row in found)
    assert {row["watch/slowest_process"] for row in found[1:5]} <= {"0.0", "1.0"}
    assert all(1.0 <= float(row["watch/slowest_over_mean"]) <= 2.0 for row in found[1:5])
    with open(tmp_path / "a" / "skipped_steps.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 16  # clips of both
