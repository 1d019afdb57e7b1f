"""The check of the `xares` package, how it finds the class, and ten minutes of audio in one call."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parity import randomize
from src.adapters import xares
from src.adapters.xares import DashengEncoder
from src.encoders.save import save_encoder
from src.errors import UserError
from src.models import create_mae

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
MAX_EXTRA_MEGABYTES = (
    120  # ten minutes instead of one: 35 for samples, 10 for tokens, twice while they are concatenated
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xares") / "encoder"
    save_encoder(randomize(create_mae("tiny"), 0).encoder, folder)
    return str(folder)


def test_it_passes_the_check_of_xares(folder, monkeypatch):
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="xares is a development dependency")
    utils = pytest.importorskip("xares.utils")
    monkeypatch.setenv("AUDIO_ENCODER", folder)
    monkeypatch.chdir(ROOT)
    encoder = utils.attr_from_py_path("src/adapters/xares.py", endswith="Encoder")()
    assert checker.check_audio_encoder(encoder)
    assert encoder.hop_size_in_ms == 40 and encoder.output_dim == 192 and encoder.sampling_rate == 16000


@pytest.fixture(scope="module")
def encoder(folder):
    return DashengEncoder(folder)


PEAK = """
import resource, sys, numpy, torch
from src.adapters.xares import DashengEncoder
torch.set_num_threads(1)
encoder = DashengEncoder(sys.argv[1])
minute = torch.from_numpy(numpy.load(sys.argv[2]))
encoder(minute)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
audio = minute.repeat(10)
tokens = encoder(audio)
assert tokens.shape == (1, 15000, 192) and torch.isfinite(tokens).all() and not tokens.requires_grad
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_ten_minutes_in_bounded_memory(folder, long_audio, tmp_path):
    """In a separate process, since the peak is counted from the start of a process."""
    np.save(tmp_path / "minute.npy", long_audio.repeat(2)[: 60 * 16000].numpy())
    command = [sys.executable, "-c", PEAK, folder, tmp_path / "minute.npy"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) / 1024 <= MAX_EXTRA_MEGABYTES


def test_a_long_sound_and_small_batches_give_the_same_tokens(encoder, long_audio, monkeypatch):
    batch = torch.stack([long_audio[:400000], 1e-4 * long_audio[:400000], 0.3 * long_audio[:400000].flip(0)])
    with torch.no_grad():
        whole = encoder.encoder(batch)
    for seconds in (30.0, 10.0):  # one sound at a time; each in chunks
        monkeypatch.setattr(xares, "_BATCH_SECONDS", seconds)
        assert (encoder(batch) - whole).abs().max() <= TOLERANCE
    assert torch.equal(encoder(batch[2:]), encoder(batch[2]))


def test_no_batch_is_longer_than_allowed(encoder, monkeypatch):
    seen = []
    monkeypatch.setattr(encoder.encoder, "forward", lambda part: seen.append(part.shape) or part.new_zeros(1, 1, 192))
    encoder(torch.zeros(100, 10 * 16000))
    assert len(seen) == 9 and sum(rows for rows, _ in seen) == 100
    assert max(rows * samples for rows, samples in seen) <= xares._BATCH_SECONDS * 16000


@pytest.mark.parametrize("batch_seconds", [120.0, 0.5])
def test_no_gradients_and_no_training_mode(encoder, long_audio, monkeypatch, batch_seconds):
    monkeypatch.setattr(xares, "_BATCH_SECONDS", batch_seconds)
    audio = long_audio[:16000]
    expected = encoder(audio)
    encoder.train()
    tokens = encoder(audio.double().requires_grad_())
    assert tokens.dtype == torch.float32 and not tokens.requires_grad
    assert (tokens - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1, 1, 16000)])
def test_a_wrong_shape_is_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"\(B, T\) or \(T,\)"):
        encoder(torch.zeros(shape))


def test_the_adapter_does_not_import_xares():
    source = Path(xares.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) xares", source, re.MULTILINE)


def test_a_missing_path_is_reported(monkeypatch):
    monkeypatch.delenv("AUDIO_ENCODER", raising=False)
    with pytest.raises(UserError, match="set AUDIO_ENCODER"):
        DashengEncoder()
