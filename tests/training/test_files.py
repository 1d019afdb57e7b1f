"""What a run writes: whole checkpoints, a metrics file that goes on, a folder of its own."""

import csv
import errno
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.config.settings import Config, ModelConfig
from src.errors import UserError
from src.training.callbacks.checkpoints import AtomicCheckpointIO
from src.training.metrics_file import MetricsFile
from src.training.run_folder import checkpoint_to_resume, compare, free_folder, read_run, start_folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_save_cut_off_by_a_full_disk_leaves_the_last_one_whole(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"weight": torch.ones(3)}, path)

    def write_some_then_fail(checkpoint, file):
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", write_some_then_fail)
    with pytest.raises(UserError, match=r"no space left on device; the previous last\.ckpt is intact"):
        io.save_checkpoint({"weight": torch.zeros(3)}, path)
    monkeypatch.undo()
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_real_full_disk_is_one_sentence(tmp_path):
    (tmp_path / "last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="could not save"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(1000)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_metrics_grow_columns_and_a_resume_drops_what_comes_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1 / step, "epoch": 0}, step)
    first.log_metrics({"knn": 0.5}, 3)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "3"]
    assert rows(path)[0] == {"step": "1", "loss": "1.0", "knn": ""}
    second = MetricsFile(path, resumed_at=2)
    second.log_metrics({"loss": 0.25}, 3)
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("1", "1.0"), ("2", "0.5"), ("3", "0.25")]


def test_a_run_is_never_overwritten(tmp_path):
    assert free_folder(str(tmp_path), "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert free_folder(str(tmp_path), "a") == tmp_path / "a-3"


def test_resume_auto_takes_the_newest_whole_checkpoint(tmp_path):
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") is None
    for number, run in enumerate(("a", "a-2", "b")):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        path = tmp_path / run / "checkpoints" / "last.ckpt"
        path.write_bytes(b"x")
        os.utime(path, (number, number))
    (tmp_path / "a-2" / "checkpoints" / "last.ckpt.partial").write_bytes(b"newer, cut off")
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") == tmp_path / "a-2" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint_to_resume(str(tmp_path), "a", str(tmp_path / "none.ckpt"))


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_run(path)
    torch.save({"state_dict": {}, "run": {"config": {}}, "global_step": 4}, path)
    assert read_run(path)["step"] == 4
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        read_run(path)


def test_changed_settings_are_listed_and_another_size_is_refused(tmp_path):
    about = {"config": OmegaConf.to_container(OmegaConf.structured(Config(seed=1)))}
    assert compare(Config(seed=1, name="other"), about, tmp_path) == []
    assert compare(Config(seed=2), about, tmp_path) == ["seed: 1 in the checkpoint, now 2"]
    with pytest.raises(UserError, match=r"size tiny, the settings say model.size=base"):
        compare(Config(seed=1, model=ModelConfig(size="base")), about, tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*runs_folder"):
        start_folder(tmp_path / "file" / "run", Config())
