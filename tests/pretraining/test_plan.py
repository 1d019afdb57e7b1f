"""The plan's numbers against what the network really has and does."""

import dataclasses
import math
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from src.config.files import load_config
from src.data.pretraining.datamodule import DataSummary
from src.errors import UserError
from src.models import create_mae
from src.models.cost import count_parameters, forward_flops, memory_bytes
from src.pretraining.plan import make_plan

DEMO = DataSummary(
    num_clips=446, crops=446, seconds=600.0, crop_seconds=1.5, clips_per_batch=32.0, cache_bytes=0, shards=None,
    overlap=0, bad=0,
)  # fmt: skip


RUN = ["trainer.max_steps=600", "trainer.val_check_interval=300", "optimizer.warmup_steps=100", "data.batch_size=32"]


def plan(overrides=(), memory_limit=math.inf, **facts):
    config = load_config(["configs/quickstart.yaml"], [*RUN, *overrides])
    model = create_mae(config.model.size, device="meta")
    return make_plan(config, model, dataclasses.replace(DEMO, **facts), False, memory_limit)


def test_activations_are_recomputed_only_where_memory_needs_it():
    assert not plan().recompute and plan(memory_limit=2e8).recompute
    assert "recomputed" in str(plan(memory_limit=2e8)) and "recomputed" not in str(plan())
    assert plan(["model.gradient_checkpointing=true"]).recompute
    assert not plan(["model.gradient_checkpointing=false"], memory_limit=2e8).recompute


def test_whole_weights_are_kept_only_under_shards_and_where_memory_allows():
    shards = ["trainer.strategy=fsdp", "trainer.devices=8", "model.size=1.2b"]
    assert not plan().keep_gathered and plan(shards).keep_gathered
    assert "whole weights" in str(plan(shards)) and "two whole blocks" in str(plan(shards, memory_limit=8e9))
    assert not plan(shards, memory_limit=8e9).keep_gathered
    machines = plan([*shards, "trainer.num_nodes=4"])
    assert "one of 8 shards" in str(machines)  # each machine has a copy


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_flops_are_those_that_torch_counts(seconds):
    model = create_mae("tiny")
    waveform = torch.randn(2, round(seconds * 16000)) * 0.1
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused one is not counted on CPU
        mask = model(waveform).mask
    tokens = mask.shape[1]
    front_end = 2 * 2 * (waveform.shape[1] // 160 + 1) * 257 * 64
    assert 2 * forward_flops(model, tokens, tokens - int(mask[0].sum())) == pytest.approx(
        counter.get_total_flops() - front_end, rel=0.01
    )


def test_memory_of_weights_and_optimiser_is_sixteen_bytes_a_parameter():
    model = create_mae("1.2b", device="meta")
    state = 16 * (count_parameters(model.encoder) + count_parameters(model.decoder))
    assert memory_bytes(model, 250, 62, 0, True, True) == state
    assert memory_bytes(model, 250, 62, 32, True, True) < memory_bytes(model, 250, 62, 32, True, False)


def test_of_several_pieces_a_process_has_one_and_two_blocks():
    model = create_mae("1.2b", device="meta")
    whole = memory_bytes(model, 250, 62, 0, True, True)
    block = count_parameters(model.encoder.blocks[0])
    for num_shards in (2, 8, 64):
        assert memory_bytes(model, 250, 62, 0, True, True, num_shards) == whole / num_shards + 10 * block
    text = str(plan(["trainer.devices=8", "trainer.strategy=fsdp", "model.size=1.2b"]))
    assert "one of 8 shards of weights" in text


def test_the_hours_of_the_run_are_without_padding():
    """600 steps of 32 crops of half a second, padded to 10 s."""
    made = plan(["trainer.max_steps=600"], crop_seconds=10.0, heard_seconds=0.5)
    assert dict(made.rows)["audio in the run"] == "2.7 hours, with repeats"


def test_the_rows_say_batch_epochs_and_learning_rate():
    made = plan(["data.batch_size=32", "trainer.accumulate_grad_batches=2", "trainer.devices=2", "optimizer.lr=1e-3",
                 "trainer.max_steps=70", "optimizer.warmup_steps=0"])  # fmt: skip
    text = str(made)
    assert "128 clips (32 per process x 2 x 2 accumulated)" in text
    assert "0.0005 at the peak (0.001 for 256 clips)" in text
    assert "70 = 20.1 epochs of 3 steps" in text
    assert "37 in 1.50 s (mean), 9 seen" in text


@pytest.mark.parametrize(
    ("overrides", "facts", "words"),
    [
        (["model.size=base"], {"seconds": 1200.0}, "85.4 M parameters on 20 minutes"),
        (["trainer.max_steps=50"], {}, "warmup_steps=100 is not less than the run's 50 steps"),
        (["data.num_workers=8"], {"shards": 5}, "5 shards for 8 workers"),
        ([], {"overlap": 3}, "3 validation clips are also in train"),
    ],
)
def test_what_looks_wrong_is_warned_of(overrides, facts, words):
    assert any(words in warning for warning in plan(overrides, **facts).warnings)
    assert not plan().warnings


@pytest.mark.parametrize(
    ("overrides", "steps", "validate_every", "epoch"),
    [
        ([], 600, 300, None),
        (["trainer.max_steps=-1", "trainer.max_epochs=10"], 140, 300, None),  # of 14 batches
        (["trainer.max_epochs=10"], 140, 300, None),
        (["trainer.max_epochs=100"], 600, 300, None),
        (["trainer.max_epochs=10", "trainer.accumulate_grad_batches=4"], 35, 300, None),
        (["trainer.max_epochs=10", "trainer.devices=2"], 70, 300, None),
        (["trainer.val_check_interval=null"], 600, 14, None),
        (["trainer.val_check_interval=0.5"], 600, 7, None),
        (["trainer.max_epochs=10", "trainer.limit_train_batches=5"], 50, 300, 5),
        (["trainer.max_epochs=10", "trainer.limit_train_batches=0.5"], 70, 300, 7),
        (["trainer.max_epochs=10", "trainer.overfit_batches=2"], 20, 300, 2),
        (["trainer.fast_dev_run=true"], 1, 300, None),
        (["trainer.fast_dev_run=3"], 3, 300, None),
    ],
)
def test_how_long_and_how_often(overrides, steps, validate_every, epoch):
    made = plan(overrides)
    assert (made.steps, made.validate_every, made.limit_train_batches) == (steps, validate_every, epoch)


@pytest.mark.parametrize("override", ["trainer.max_epochs=2", "trainer.val_check_interval=0.5",
                                      "trainer.limit_train_batches=0.5"])  # fmt: skip
def test_a_stream_has_no_epochs(override):
    with pytest.raises(UserError, match="unknown"):
        plan([override], num_clips=None, crops=None, seconds=None)


def loading(**rates):
    overrides = [*RUN, "data.num_workers=4"]
    config = load_config(["configs/quickstart.yaml"], overrides)
    return make_plan(config, create_mae(config.model.size, device="meta"), DEMO, True, **rates)


def test_the_plan_compares_what_is_decoded_with_what_the_step_needs(monkeypatch):
    monkeypatch.setattr("src.pretraining.plan.cores", lambda: 16)
    assert "loading" not in dict(loading().rows)
    unknown = dict(loading(worker_rate=100.0).rows)["loading"]
    assert unknown == "4 workers give about 400 crops/s per process; what the step needs is not known on this device"
    flops = float(dict(plan().rows)["compute per step"].split()[0].replace(",", "")) * 1e9 / 32
    peak = 1000 * flops / 0.35  # a device whose step needs 1,000 crops per second
    short = loading(worker_rate=100.0, peak_flops=peak)
    assert "4 workers give about 400" in short.warnings[-1] and "src.pack" in short.warnings[-1]
    assert re.search(r"set data.num_workers=1[01]$", short.warnings[-1])  # the row rounds
    assert not any("crops/s" in each for each in loading(worker_rate=300.0, peak_flops=peak).warnings)
    far = loading(worker_rate=10.0, peak_flops=peak).warnings[-1]
    assert "src.pack" in far and "num_workers" not in far  # this machine has no 100 cores


def test_no_more_workers_count_than_there_are_cores(monkeypatch):
    monkeypatch.setattr("src.pretraining.plan.cores", lambda: 2)
    assert "4 workers give about 200 crops/s per process on 2 cores" in dict(loading(worker_rate=100.0).rows)["loading"]
