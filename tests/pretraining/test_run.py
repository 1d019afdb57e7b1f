"""Whole runs through the command line: losses after a kill, on two processes, after SIGTERM; what is written."""

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from src import embed, export, train
from src.encoders.load import load_encoder
from src.errors import UserError
from src.models.sizes import create_mae
from src.pretraining.start import start_from

ROOT = Path(__file__).parents[2]
SMALL = ["trainer.log_every_n_steps=1", "data.batch_size=8", "data.crop_seconds=1.0", "data.window_clips=64",
         "check.train=null", "check.test=null", "trainer.val_check_interval=1000", "data.validation=null",
         "tracking.wandb=null", "optimizer.warmup_steps=2", "trainer.threads=1", "model.drop_path=0.1",
         "check.layer=null"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("two_blocks")
slow = pytest.mark.slow
VALIDATION = "data.validation={kind: huggingface, path: data/demo, split: validation}"


def fit(runs, *overrides, resume=None, name="a"):
    arguments = [
        "fit",
        "--config",
        str(ROOT / "configs/quickstart.yaml"),
        *SMALL,
        f"runs_folder={runs}",
        f"name={name}",
    ]
    return train.main([*arguments, *overrides, *(["--resume", resume] if resume else [])])


def command(runs, *overrides, resume=None, name="a"):
    arguments = [
        sys.executable,
        "-m",
        "tests.training.two_blocks",
        "fit",
        "--config",
        "configs/quickstart.yaml",
        *SMALL,
    ]
    arguments += [f"runs_folder={runs}", f"name={name}", *overrides, *(["--resume", resume] if resume else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(runs, name="a"):
    with open(Path(runs, name, "metrics.csv"), newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def wait_for_step(runs, step, process, name="a"):
    for _ in range(6000):
        if Path(runs, name, "metrics.csv").exists() and max(losses(runs, name), default=-1) >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    raise AssertionError("the run did not get that far in two minutes")


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        pytest.param("huggingface", 0, marks=slow),
        pytest.param("streaming", 2, marks=slow),
        pytest.param("folder", 2, marks=slow),
        ("shards", 0),
        pytest.param("huggingface", 2, marks=slow),
        pytest.param("streaming", 0, marks=slow),
        pytest.param("folder", 0, marks=slow),
        pytest.param("shards", 2, marks=slow),
    ],
)
def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path, sources, kind, workers):
    """Weights, optimiser, schedule, clips, crops, masks and drop-path go on bit by bit: the losses are equal."""
    overrides = [f"data.sources=[{sources[kind]}]", f"data.num_workers={workers}", "checkpoint.every_n_train_steps=6"]
    steps = "trainer.max_steps=36"  # an epoch has 15 steps: the kill comes in mid-epoch, the end in the third
    assert fit(tmp_path, *overrides, steps, name="whole") == 0
    process = command(tmp_path, *overrides, steps, name="cut")
    wait_for_step(tmp_path, 13, process, name="cut")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert max(losses(tmp_path, "cut")) < 35
    assert fit(tmp_path, *overrides, steps, name="cut", resume="auto") == 0
    assert losses(tmp_path, "cut") == losses(tmp_path, "whole")
    assert len(losses(tmp_path, "cut")) == 36


def test_the_number_of_workers_changes_nothing(tmp_path, sources):
    for workers in (0, 2):
        overrides = [f"data.sources=[{sources['folder']}]", f"data.num_workers={workers}", "trainer.max_steps=6"]
        assert fit(tmp_path, *overrides, name=f"w{workers}") == 0
    assert losses(tmp_path, "w0") == losses(tmp_path, "w2")


def test_clipping_goes_with_bf16(tmp_path):
    """The optimiser is fused; the gradient after clipping is within the limit."""
    overrides = ["trainer.max_steps=2", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    assert fit(tmp_path, *overrides, "trainer.gradient_clip_val=0.5", name="clipped") == 0
    assert fit(tmp_path, *overrides, name="free") == 0
    assert losses(tmp_path, "clipped") != losses(tmp_path, "free")


@pytest.mark.slow  # tests/training/test_one_run.py has one of them
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on_exactly(tmp_path, number):
    assert fit(tmp_path, "trainer.max_steps=30", name="whole") == 0
    process = command(tmp_path, "trainer.max_steps=30", name="cut")
    wait_for_step(tmp_path, 2, process, name="cut")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert "--resume auto" in output and "Traceback" not in output
    stopped = max(losses(tmp_path, "cut"))
    saved = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == stopped + 1
    assert fit(tmp_path, "trainer.max_steps=30", name="cut", resume="auto") == 0
    assert losses(tmp_path, "cut") == losses(tmp_path, "whole")


def test_resume_from_a_best_checkpoint_is_exact_too(tmp_path):
    overrides = [
        VALIDATION,
        "trainer.val_check_interval=4",
    ]
    assert fit(tmp_path, *overrides, "trainer.max_steps=10", name="whole") == 0
    best = sorted((tmp_path / "whole/checkpoints").glob("step=4-*.ckpt"))
    assert len(best) == 1
    before = losses(tmp_path, "whole")
    assert fit(tmp_path, *overrides, "trainer.max_steps=10", name="whole", resume=str(best[0])) == 0
    assert losses(tmp_path, "whole") == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One short run with everything on."""
    runs = tmp_path_factory.mktemp("runs")
    overrides = [VALIDATION, "trainer.val_check_interval=3",
                 "check.train={kind: huggingface, path: data/demo, split: train, label_column: label}",
                 "check.test={kind: huggingface, path: data/demo, split: test, label_column: label}",
                 "check.max_clips=60", "tracking.wandb=offline", "trainer.max_steps=6", "checkpoint.save_top_k=1",
                 "data.test={kind: huggingface, path: data/demo, split: test}"]  # fmt: skip
    assert fit(runs, *overrides) == 0
    return runs / "a", overrides


def test_a_run_folder_holds_what_it_should(finished):
    folder, _ = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "plan.txt", "metrics.csv", "log.txt", "skipped.csv"} <= names
    assert {"pictures/step=3.png", "pictures/step=6.png", "checkpoints/last.ckpt"} <= names
    assert len(list((folder / "checkpoints").glob("step=*-val_loss=*.ckpt"))) == 1
    assert list(folder.glob("wandb/offline-run-*"))
    log = (folder / "log.txt").read_text()
    for words in ("majority class", "mel mean + deviation", "untrained encoder", "this encoder", "waiting for data"):
        assert words in log
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 6


def test_metrics_say_whether_it_learns_and_how_fast(finished):
    folder, _ = finished
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0])
    assert {"train/loss", "train/gradient_norm", "train/learning_rate", "train/clips_per_second", "train/audio_hours",
            "train/data_wait_share", "train/hours_to_go", "val/loss", "check/knn", "check/linear", "check/deviation",
            "check/effective_rank", "floor/untrained_knn", "floor/mel_linear",
            "floor/majority_knn"} <= columns  # fmt: skip
    hours = [float(row["train/audio_hours"]) for row in rows if row["train/audio_hours"]]
    assert all(a < b for a, b in itertools.pairwise(hours)) and hours[-1] <= 6 * 8 * 1.0 / 3600
    assert all(float(row["train/gradient_norm"]) > 0 for row in rows if row["train/gradient_norm"])
    assert sum(bool(row["check/knn"]) for row in rows) == 2


def test_a_checkpoint_says_everything_and_is_plain_data(finished):
    folder, _ = finished
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert any(key.startswith("model.decoder.") for key in content["state_dict"])
    assert content["optimizer_states"] and content["lr_schedulers"]
    run = content["run"]
    assert run["config"]["model"]["size"] == "tiny" and run["wandb_id"] and run["versions"]["torch"]
    assert run["wandb_id"] in next(folder.glob("wandb/offline-run-*")).name


def test_a_run_loads_as_an_encoder_and_pretraining_goes_on_from_its_export(finished, tmp_path):
    folder, _ = finished
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    encoder = load_encoder(folder)
    assert all(torch.equal(value, state[f"model.encoder.{name}"]) for name, value in encoder.state_dict().items())
    assert export.main([str(folder), "--out", str(tmp_path / "export")]) == 0
    assert json.loads((tmp_path / "export/config.json").read_text())["training"]["step"] == 6
    assert export.main([str(folder), "--format", "dasheng", "--out", str(tmp_path / "encoder.pt")]) == 0
    for name, words in (("export", "encoder and decoder"), ("encoder.pt", "the decoder is new")):
        assert fit(tmp_path / "runs", f"model.init_from={tmp_path / name}", "trainer.max_steps=1", name=name) == 0
        assert words in (tmp_path / "runs" / name / "log.txt").read_text()
    model = create_mae("tiny", layer_scale=0.1, seed=1)
    start_from(model, str(tmp_path / "export"))
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in model.state_dict().items())
    with pytest.raises(UserError, match=r"width=192.*768"):
        start_from(create_mae("base", device="meta"), str(tmp_path / "export"))


def test_a_start_from_other_weights_is_no_untrained_encoder(finished, tmp_path):
    """The floor that it has to beat is its start, named so, with the statistics that came with the weights."""
    folder, overrides = finished
    check = [each for each in overrides if each.startswith("check.")]
    more = [f"model.init_from={folder}", "trainer.max_steps=1", "optimizer.lr=0", "model.drop_path=0"]
    assert fit(tmp_path, *check, *more) == 0
    with open(tmp_path / "a/metrics.csv", newline="") as file:
        last = {key: value for row in csv.DictReader(file) for key, value in row.items() if value}
    assert "floor/untrained_knn" not in last
    with open(folder / "metrics.csv", newline="") as file:
        before = [row for row in csv.DictReader(file) if row["check/knn"]][-1]
    for probe in ("knn", "linear"):
        assert last[f"floor/init_from_{probe}"] == before[f"check/{probe}"], probe
    log = (tmp_path / "a/log.txt").read_text()
    assert "model.init_from  " in log and "untrained encoder" not in log


@pytest.mark.parametrize(("name", "words"), [("validate", "val/loss"), ("test", "test/loss")])
def test_validate_and_test_print_the_loss(finished, capsys, name, words):
    folder, _ = finished
    config = ["--config", str(folder / "config.yaml")]
    assert train.main([name, *config, "--checkpoint", str(folder / "checkpoints/last.ckpt")]) == 0
    assert words in capsys.readouterr().out


def test_predict_embeds_each_test_clip_as_embed_does(finished, tmp_path):
    folder, _ = finished
    assert train.main(["predict", "--config", str(folder / "config.yaml"), "--checkpoint", "last"]) == 0
    words = ["data/demo", "--split", "test", "--encoder", str(folder), "--out", str(tmp_path / "same.parquet")]
    assert embed.main(words) == 0
    one, two = pq.read_table(folder / "embeddings.parquet"), pq.read_table(tmp_path / "same.parquet")
    assert one.num_rows == 212 == len(set(one["path"].to_pylist())) and one["embedding"] == two["embedding"]


def test_another_size_is_refused_in_one_sentence(finished, capsys):
    folder, _ = finished
    config = ["--config", str(folder / "config.yaml"), "model.size=base"]
    checkpoint = str(folder / "checkpoints/last.ckpt")
    assert train.main(["fit", *config, "--resume", checkpoint]) == 2
    assert train.main(["validate", *config, "--checkpoint", checkpoint]) == 2
    said = capsys.readouterr().err
    assert "trained with model.size=tiny, but the settings have model.size=base" in said
    assert "has a model of size tiny" in said


def test_a_second_start_takes_a_folder_of_its_own(tmp_path):
    for _ in range(2):
        assert fit(tmp_path, "trainer.max_steps=1") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a-2"]


def test_plan_alone_trains_nothing(tmp_path, capsys):
    assert fit(tmp_path, "--plan") == 0
    assert "GFLOP" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
