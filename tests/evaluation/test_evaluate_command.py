"""The command to its end: every method on every kind of task, jobs, torchrun, a kill, W&B."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.evaluate import METHOD_NAMES, log_wandb, main
from tests.evaluation.made_tasks import hear_task, labels_task

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "audio"
SMALL_GRID = {"hidden_dim": [16], "max_epochs": [6], "lr": [0.01, 0.003], "initialization": ["xavier_uniform_"]}


def with_small_grid(folder: Path) -> Path:
    metadata = json.loads((folder / "task_metadata.json").read_text())
    metadata["evaluation_params"] = {"task_specific_param_grid": SMALL_GRID}
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    return folder


def results(out: Path) -> list[dict]:
    """Rows without what may differ between equal runs: durations."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    return [{**row, "folds": [{**fold, "seconds": 0} for fold in row["folds"]]} for row in rows]


@pytest.mark.slow
def test_every_method_gives_the_same_table_for_one_and_two_jobs(tmp_path, two_blocks, monkeypatch):
    monkeypatch.setattr("src.evaluation.untrained.SEEDS", (0,))
    tasks = tmp_path / "tasks"
    with_small_grid(hear_task(tasks / "music_folds", "multiclass", "new_split_kfold", 6))
    with_small_grid(hear_task(tasks / "env_tags", "multilabel", "trainvaltest", 2))
    with_small_grid(hear_task(tasks / "env_events", "event", "trainvaltest", 2))
    arguments = [str(tasks), "--method", ",".join(METHOD_NAMES), "--seed", "3"]
    for jobs in ("1", "2"):
        assert main([*arguments, "--jobs", jobs, "--out", str(tmp_path / jobs)]) == 0
    first = results(tmp_path / "1")
    assert first == results(tmp_path / "2")
    assert (tmp_path / "1" / "results.md").read_text() == (tmp_path / "2" / "results.md").read_text()
    done = {(row["task"], row["method"]) for row in first}
    every = {(task.name, method) for task in tasks.iterdir() for method in (*METHOD_NAMES, "majority")}
    assert done == {(task, method) for task, method in every if method != "fewshot" or task == "music_folds"}
    mel = {(row["task"], row["method"]): row["score"] for row in first if row["encoder"] == "mel"}
    assert all(mel["music_folds", method] > 0.8 for method in ("knn", "linear", "fewshot"))


def command(tasks: Path, out: Path, *launcher: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "src.evaluate", str(tasks), "--method", "knn,linear", "--jobs", "1", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_processes_of_torchrun_share_the_tasks_and_a_killed_run_continues(tmp_path):
    tasks = tmp_path / "tasks"
    for name in ("env_a", "music_b", "speech_c"):
        labels_task(tasks / name, per_part=2)
    (labels_task(tasks / "env_broken", per_part=1) / "train-0.wav").write_bytes(b"no audio")

    killed = command(tasks, tmp_path / "one")
    deadline = time.monotonic() + 300
    while len(files := list((tmp_path / "one" / "scores").rglob("*.json"))) < 4:
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {file: file.stat().st_mtime_ns for file in files}
    again = command(tasks, tmp_path / "one")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 1 and "train-0.wav" in output
    assert before == {file: file.stat().st_mtime_ns for file in files}

    shared = command(tasks, tmp_path / "two", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    output, _ = shared.communicate(timeout=300)
    assert output.count("everything: ") == 1, output
    assert results(tmp_path / "two") == results(tmp_path / "one")
    errors = [json.loads((tmp_path / name / "results.json").read_text())["errors"] for name in ("one", "two")]
    assert errors[0] == errors[1] and len(errors[0]) == 1


@pytest.mark.slow
def test_wandb_offline_has_the_rows_as_a_table(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    row = {"task": "a", "domain": "music", "encoder": "mel", "method": "knn", "metric": "top1_acc", "floor": True}
    log_wandb([{**row, "score": 0.25, "interval": [0.2, 0.3]}], tmp_path, "offline", [])
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluation_*.json")
    table = json.loads(file.read_text())
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {
        **row,
        "score": 0.25,
        "interval": "[0.2, 0.3]",
    }


def test_wandb_online_without_a_key_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", lambda **_: False)
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--wandb", "online"]) == 2
    assert "--wandb=online, but W&B cannot be used: there is no API key" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "floors.json").exists(), reason="the tasks of the tables are absent")
@pytest.mark.parametrize("name", ["env_animals", "speech_exclaim"])
def test_the_mel_floor_is_that_of_an_independent_program(tmp_path, name):
    from src.evaluation.run import Settings, evaluate
    from src.evaluation.untrained import MelStatistics

    settings = Settings(["knn", "linear"], tmp_path, shown=False)
    rows, _ = evaluate([str(SHARED / "tasks" / name)], [MelStatistics()], settings)
    expected = json.loads((SHARED / "floors.json").read_text())[name]
    names = {"majority": "majority", "knn": "knn", "linear": "logistic"}
    for row in rows:
        assert row["score"] == pytest.approx(expected[names[row["method"]]], abs=6e-4), row["method"]
