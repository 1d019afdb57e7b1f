"""Small runs through the command line, on one process or several, and what their metrics.csv says."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from src import train

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # of losses around 1
STEPS = 20
# AdamW, because Muon takes longer than the rest of such a step; it has tests of its own.
SMALL = ["trainer.log_every_n_steps=1", "data.crop_seconds=1.0", "data.window_clips=64", "check.train=null",
         "check.test=null", "trainer.val_check_interval=1000", "data.validation=null", "tracking.wandb=null",
         "optimizer.warmup_steps=2", "optimizer.name=adamw", "trainer.gradient_clip_val=0.5", "trainer.threads=1",
         "trainer.accelerator=cpu", f"trainer.max_steps={STEPS}"]  # fmt: skip
TWO = ["data.batch_size=4", "trainer.devices=2"]
FOUR = ["data.batch_size=2", "trainer.devices=4", "trainer.strategy=fsdp"]
FSDP = [*TWO, "trainer.strategy=fsdp"]


def words(runs, name, *overrides, resume=None):
    arguments = [
        "fit",
        "--config",
        str(ROOT / "configs/quickstart.yaml"),
        *SMALL,
        f"runs_folder={runs}",
        f"name={name}",
    ]
    return [*arguments, *overrides, *(["--resume", resume] if resume else [])]


def start(runs, name, *overrides, resume=None, launcher=(sys.executable,)):
    command = [*launcher, "-m", "src.train", *words(runs, name, *overrides, resume=resume)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, status=0, seconds=300):
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == status, output
    return output


def fit(runs, name, *overrides, resume=None):
    """Here where it is one process, else through the command."""
    if not any("devices" in word or "fsdp" in word for word in overrides):
        assert train.main(words(runs, name, *overrides, resume=resume)) == 0
        return
    finish(start(runs, name, *overrides, resume=resume))


def column(runs, name, which="train/loss"):
    with open(Path(runs, name, "metrics.csv"), newline="") as file:
        return {int(row["step"]): float(row[which]) for row in csv.DictReader(file) if row.get(which)}


def same(first, second, tolerance=TOLERANCE):
    assert list(first) == list(second)
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=0, atol=tolerance)


def wait_for_step(runs, name, step, process):
    for _ in range(1200):
        if Path(runs, name, "metrics.csv").exists() and max(column(runs, name), default=-1) >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("the run did not get that far in a minute")


def processes_of(parent):
    """Process ids of the ranks, in their order."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return sorted(map(int, listed.stdout.split()))
