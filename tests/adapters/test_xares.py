"""The real check of the `xares` package, its way of finding the class, and ten minutes of audio in one call."""

from pathlib import Path

import pytest
import torch

from benchmarks.parity import randomise
from src.adapters.xares import DashengEncoder
from src.checkpoint import save_encoder
from src.errors import UserError
from src.models import create_mae

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("xares") / "encoder"
    save_encoder(randomise(create_mae("tiny"), 0).encoder, folder)
    return str(folder)


def test_it_passes_the_real_check(folder, monkeypatch):
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="xares is a development dependency")
    utils = pytest.importorskip("xares.utils")
    monkeypatch.setenv("AUDIO_ENCODER", folder)
    monkeypatch.chdir(ROOT)
    encoder = utils.attr_from_py_path("src/adapters/xares.py", endswith="Encoder")()
    assert checker.check_audio_encoder(encoder)
    assert encoder.hop_size_in_ms == 40 and encoder.output_dim == 192 and encoder.sampling_rate == 16000


def test_ten_minutes(folder, long_audio):
    encoder = DashengEncoder(folder)
    audio = long_audio.repeat(20)[: 600 * 16000]
    tokens = encoder(audio)
    assert tokens.shape == (1, 15000, 192) and torch.isfinite(tokens).all() and not tokens.requires_grad
    assert torch.equal(encoder(audio[None, :160000]), encoder(audio[:160000]))


def test_no_path_is_said(monkeypatch):
    monkeypatch.delenv("AUDIO_ENCODER", raising=False)
    with pytest.raises(UserError, match="set AUDIO_ENCODER"):
        DashengEncoder()
