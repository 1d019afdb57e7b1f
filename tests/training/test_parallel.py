"""Several processes through the command line: one = DDP on two = FSDP2 on two; kills, resumes, shards on disk."""

import io
import os
import shutil
import signal
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torch.multiprocessing as mp
from torch._dynamo.testing import CompileCounter

from src import embed, export, train
from src.config.files import load_config
from src.data.pretraining.datamodule import PretrainDataModule
from src.encoders.lightning import read_about
from src.encoders.load import load_encoder
from src.errors import UserError
from src.models.sizes import create_mae
from src.training.distributed.checkpoint import copy, put_in_place
from src.training.distributed.parallel import compile_blocks
from src.training.run_folder import checkpoint_to_resume
from tests.training.pieces import autocast_and_shards, pieces, two_copies_of_two_halves
from tests.training.processes import (
    FOUR,
    FSDP,
    ROOT,
    SMALL,
    STEPS,
    TOLERANCE,
    TWO,
    column,
    finish,
    fit,
    processes_of,
    same,
    start,
    wait_for_step,
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two sources of uneven shards, two clips of the one for each of the other."""
    folder = tmp_path_factory.mktemp("mixture")
    clips = pq.read_table(next((ROOT / "data/demo/data").glob("train-*.parquet"))).column("audio").to_pylist()[:110]
    for shard, part in (("a-0", clips[:50]), ("a-1", clips[50:70]), ("b-0", clips[70:100]), ("b-1", clips[100:])):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, clip in enumerate(part):
                member = tarfile.TarInfo(f"{shard}-{number:03}.opus")
                member.size = len(clip["bytes"])
                tar.addfile(member, io.BytesIO(clip["bytes"]))
    a, b = (f"{{kind: shards, path: {folder}/{name}-*.tar, weight: {weight}}}" for name, weight in (("a", 2), ("b", 1)))
    return [f"data.sources=[{a}, {b}]"]


@pytest.fixture(scope="module")
def runs(mixture, tmp_path_factory):
    """The same 20 steps on one process, on two whole copies, and on two halves; two workers for each of the halves."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder, "one", "data.batch_size=8", *mixture)
    fit(folder, "ddp", *TWO, *mixture)
    fit(folder, "fsdp", *FSDP, *mixture, "data.num_workers=2")
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_and_gradient_norms_of_one(runs, name):
    assert len(column(runs, "one")) == STEPS
    same(column(runs, "one"), column(runs, name))
    same(column(runs, "one", "train/gradient_norm"), column(runs, name, "train/gradient_norm"), 1e-4)  # norms around 3
    assert {path.name for path in runs.iterdir()} >= {"one", "ddp", "fsdp"}
    assert not list(runs.glob("*-2"))  # the other processes make no folders


@pytest.mark.slow
@pytest.mark.parametrize("several", [FSDP, TWO], ids=["fsdp", "ddp"])
def test_muon_takes_the_steps_of_one_process_on_two(mixture, tmp_path, several):
    overrides = [*mixture, "optimizer.name=muon", "trainer.max_steps=3"]
    fit(tmp_path, "one", "data.batch_size=8", *overrides)
    fit(tmp_path, "two", *several, *overrides)
    assert len(column(tmp_path, "two")) == 3
    same(column(tmp_path, "one"), column(tmp_path, "two"))


@pytest.mark.slow
def test_muon_goes_on_with_another_number_of_processes(mixture, tmp_path):
    overrides = [*mixture, "optimizer.name=muon"]
    for name, several in (("one", ["data.batch_size=8"]), ("fsdp", FSDP)):
        fit(tmp_path, name, *several, *overrides, "trainer.max_steps=3")
        fit(tmp_path, name, "data.batch_size=8", *overrides, "trainer.max_steps=6", resume="auto")
    assert len(column(tmp_path, "one")) == 6
    same(column(tmp_path, "one"), column(tmp_path, "fsdp"))


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_sentence_and_the_resume_is_exact(runs, mixture, tmp_path):
    """SIGKILL of rank 1 in mid-epoch of a mixture, two workers each; the losses go on bit by bit."""
    overrides = [*FSDP, *mixture, "data.num_workers=2", "checkpoint.every_n_train_steps=3"]
    process = start(tmp_path, "cut", *overrides)
    wait_for_step(tmp_path, "cut", 8, process)
    ranks = processes_of(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    output = finish(process, status=1, seconds=60)
    assert time.monotonic() - killed < 60
    assert "process 1 of 2 was killed by SIGKILL" in output and "--resume auto" in output
    assert "another process of the run has died" in output  # what the other one saw
    assert not any(Path("/proc", str(rank)).exists() for rank in ranks)
    assert max(column(tmp_path, "cut")) < STEPS - 1

    last = tmp_path / "cut/checkpoints/last.ckpt"
    position = read_about(last)["PretrainDataModule"]["position"]
    assert position == 8 * read_about(last)["global_step"]
    assert clips_from(position, 5, mixture) == clips_from(0, 5 + position // 8, mixture)[position // 8 :]
    fit(tmp_path, "cut", *overrides, resume="auto")
    assert column(tmp_path, "cut") == column(runs, "fsdp")


def clips_from(position, batches, sources):
    """Names of the clips of the next global batches, as two processes take them from there."""
    config = load_config([str(ROOT / "configs/quickstart.yaml")], [*SMALL, *TWO, *sources])
    ranks = []
    for rank in range(2):
        data = PretrainDataModule(config.data, config.seed)
        data.setup()
        data.position, data.trainer = position, type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        loader = iter(data.train_dataloader())
        ranks.append([next(loader)["key"] for _ in range(batches)])
    return list(zip(*ranks, strict=True))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("fsdp", ["data.batch_size=8"]),
        pytest.param("fsdp", ["data.batch_size=8", "trainer.strategy=fsdp"], marks=pytest.mark.slow),
        pytest.param("fsdp", TWO, marks=pytest.mark.slow),
        pytest.param("fsdp", FOUR, marks=pytest.mark.slow),
        pytest.param("one", FSDP, marks=pytest.mark.slow),
        pytest.param("ddp", FSDP, marks=pytest.mark.slow),
        pytest.param("fsdp-1", FSDP, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(runs, longer, mixture, tmp_path, before, after):
    """Weights, moments, schedule and clips: eight steps after the change."""
    if before == "fsdp-1":
        fit(runs, before, "data.batch_size=8", "trainer.strategy=fsdp", *mixture)
    shutil.copytree(runs / before, tmp_path / "run")
    fit(tmp_path, "run", *after, *mixture, "trainer.max_steps=28", resume="auto")
    found = column(tmp_path, "run")
    assert len(found) == 28
    same({step: found[step] for step in range(20, 28)}, longer)


@pytest.fixture(scope="module")
def longer(runs, mixture, tmp_path_factory):
    """Losses of steps 20 to 27 of the run on one process, which went on to 28."""
    folder = tmp_path_factory.mktemp("longer")
    shutil.copytree(runs / "one", folder / "one")
    fit(folder, "one", "data.batch_size=8", *mixture, "trainer.max_steps=28", resume="auto")
    found = column(folder, "one")
    return {step: found[step] for step in range(20, 28)}


def test_shards_of_two_processes_are_read_directly(runs, tmp_path, clips):
    encoder, whole = load_encoder(runs / "fsdp"), load_encoder(runs / "ddp/checkpoints/last.ckpt")
    waveform = clips[0][None]
    with torch.no_grad():
        expected = whole.embed(waveform)
        assert (encoder.embed(waveform) - expected).abs().max() <= 1e-3 * expected.abs().max()  # 20 steps of AdamW
    assert export.main([str(runs / "fsdp"), "--out", str(tmp_path / "export")]) == 0
    exported = load_encoder(tmp_path / "export").state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in encoder.state_dict().items())
    soundfile.write(tmp_path / "dog.wav", clips[0].numpy(), 16000)
    table = tmp_path / "clips.npz"
    assert embed.main([str(tmp_path / "dog.wav"), "--encoder", str(runs / "fsdp"), "--out", str(table)]) == 0
    assert table.stat().st_size > 0
    config = ["--config", str(runs / "fsdp/config.yaml"), "data.validation={kind: huggingface, path: data/demo, "
              "split: validation}"]  # fmt: skip
    assert train.main(["validate", *config, "--checkpoint", str(runs / "fsdp/checkpoints/last.ckpt")]) == 0


@pytest.mark.slow
def test_initial_weights_are_those_of_an_unsharded_network(tmp_path):
    mp.spawn(pieces, (str(tmp_path),), nprocs=2)
    expected = create_mae("tiny", seed=3, layer_scale=0.1, dct_patches=True)
    torch.testing.assert_close(torch.load(tmp_path / "whole.pt"), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(torch.load(tmp_path / "buffers.pt"), dict(expected.named_buffers()), rtol=0, atol=0)


@pytest.mark.slow
def test_two_machines_of_two_hold_a_sharded_copy_each(tmp_path):
    mp.spawn(two_copies_of_two_halves, (str(tmp_path),), nprocs=4)


@pytest.mark.slow
def test_the_residual_stream_is_bf16_with_and_without_shards(tmp_path):
    mp.spawn(autocast_and_shards, (str(tmp_path),), nprocs=1)


def test_changing_lengths_do_not_compile_again_and_again():
    counter, model, counts = CompileCounter(), create_mae("tiny"), []
    compile_blocks(model, backend=counter)
    for seconds, clips in [(1.0, 4), (1.3, 4), (0.7, 2), (2.0, 3), (1.1, 5), (0.9, 2)]:
        model(torch.zeros(clips, round(16000 * seconds)))
        counts.append(counter.frame_count)
    assert counts[0] == 2  # a block of the encoder and one of the decoder, which all others share
    assert counts[2:] == [counts[2]] * 4 and counts[2] <= 6  # the second and third: for any length, for any batch


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["trainer.precision=bf16-mixed"]], ids=["fp32", "bf16"])
def test_probes_pictures_and_validation_work_on_pieces(tmp_path, extra):
    overrides = ["trainer.val_check_interval=2", "trainer.max_steps=4", "checkpoint.save_top_k=1", "check.max_clips=70",
                 "check.train={kind: huggingface, path: data/demo, split: train, label_column: label}",
                 "check.test={kind: huggingface, path: data/demo, split: test, label_column: label}",
                 "data.validation={kind: huggingface, path: data/demo, split: validation}",
                 "model.gradient_checkpointing=true", *extra]  # fmt: skip
    fit(tmp_path, "one", "data.batch_size=8", *overrides)
    fit(tmp_path, "fsdp", *FSDP, *overrides)
    tolerance = 1e-3 if extra else TOLERANCE
    for name in ("train/loss", "val/loss"):
        same(column(tmp_path, "one", name), column(tmp_path, "fsdp", name), tolerance)
    for name in ("check/knn", "check/linear"):
        same(column(tmp_path, "one", name), column(tmp_path, "fsdp", name), 0.1 if extra else 1e-9)
    assert len(column(tmp_path, "fsdp", "check/knn")) == 2
    assert {path.name for path in (tmp_path / "fsdp/pictures").iterdir()} == {"step=2.png", "step=4.png"}
    best = [path.name for path in (tmp_path / "fsdp/checkpoints").iterdir()]
    assert len(best) == 2 and "last.ckpt" in best


@pytest.mark.slow
def test_a_signal_to_the_one_that_started_them_saves_and_leaves(runs, mixture, tmp_path):
    process = start(tmp_path, "cut", *FSDP, *mixture)
    wait_for_step(tmp_path, "cut", 6, process)
    process.send_signal(signal.SIGUSR1)
    output = finish(process, status=128 + signal.SIGUSR1, seconds=60)
    assert "stopped at step" in output and "--resume auto" in output and "Traceback" not in output
    fit(tmp_path, "cut", *FSDP, *mixture, resume="auto")
    assert column(tmp_path, "cut") == column(runs, "fsdp")


@pytest.mark.slow
def test_accumulated_batches_and_dropped_paths(tmp_path):
    """Two batches a step; drop-path differs from process to process, but not from a copy to a piece of the model."""
    shared = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=6"]
    fit(tmp_path, "one", "data.batch_size=8", *shared)
    fit(tmp_path, "fsdp", *FSDP, *shared)
    same(column(tmp_path, "one"), column(tmp_path, "fsdp"))
    dropped = [
        "model.drop_path=0.2",
        "model.layer_scale=0.1",
        "model.gradient_checkpointing=true",
        "trainer.max_steps=6",
    ]
    fit(tmp_path, "ddp-dropped", *TWO, *dropped)
    fit(tmp_path, "fsdp-dropped", *FSDP, *dropped)
    same(column(tmp_path, "ddp-dropped"), column(tmp_path, "fsdp-dropped"))


@pytest.mark.slow
def test_pieces_start_from_an_export(runs, tmp_path):
    assert export.main([str(runs / "one"), "--out", str(tmp_path / "export")]) == 0
    start_from = [f"model.init_from={tmp_path / 'export'}", "trainer.max_steps=3"]
    fit(tmp_path, "ddp", *TWO, *start_from)
    fit(tmp_path, "fsdp", *FSDP, *start_from)
    same(column(tmp_path, "ddp"), column(tmp_path, "fsdp"))
    assert "encoder and decoder" in (tmp_path / "fsdp/log.txt").read_text()


@pytest.mark.slow
def test_blocks_are_compiled_under_shards(runs, mixture, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile on a CPU needs g++")
    fit(tmp_path, "compiled", *FSDP, *mixture, "trainer.compile=true", "trainer.max_steps=4")
    found, expected = column(tmp_path, "compiled"), column(runs, "fsdp")
    assert abs(found[0] - expected[0]) < TOLERANCE  # the schedule of four steps differs from the second step on


def test_a_save_that_was_cut_off_is_never_taken(tmp_path):
    """A folder without its last file, and one without its name; the newest whole one is found, old name or new."""
    checkpoints = tmp_path / "a/checkpoints"
    for name, files in (("last.ckpt.partial", (".metadata", "meta.pt")), ("step=9.ckpt", (".metadata",))):
        (checkpoints / name).mkdir(parents=True)
        for file in files:
            (checkpoints / name / file).write_bytes(b"")
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") is None
    with pytest.raises(UserError, match=r"meta\.pt.*interrupted"):
        read_about(checkpoints / "step=9.ckpt")
    (checkpoints / "last.ckpt.old").mkdir()  # the moment between two renames
    (checkpoints / "last.ckpt.old/meta.pt").write_bytes(b"")
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") == checkpoints / "last.ckpt.old"
    put_in_place(checkpoints / "last.ckpt.partial", checkpoints / "last.ckpt")
    assert checkpoint_to_resume(str(tmp_path), "a", "auto") == checkpoints / "last.ckpt"
    put_in_place(checkpoints / "last.ckpt.old", checkpoints / "last.ckpt")  # a folder over a folder
    copy(checkpoints / "last.ckpt", checkpoints / "step=1.ckpt")
    assert {path.name for path in checkpoints.iterdir()} == {"last.ckpt", "step=1.ckpt", "step=9.ckpt"}
