"""What a run writes: whole checkpoints, a metrics file that goes on, a folder of its own."""

import csv
import errno
from pathlib import Path

import pytest
import torch

from src.errors import UserError
from src.training.callbacks.checkpoints import AtomicCheckpointIO
from src.training.metrics_file import MetricsFile


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
    second = MetricsFile(path, resumed_at=3)  # steps 0, 1 and 2 were made
    second.log_metrics({"loss": 0.25}, 3)
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("1", "1.0"), ("2", "0.5"), ("3", "0.25")]
