"""Encoders of other projects: modules with the HEAR API, classes of X-ARES, and our own as either."""

import sys
import types

import numpy as np
import pytest
import torch

from src.encoders.save import save_encoder
from src.errors import UserError
from src.evaluation.frozen import Batch, FrozenViT
from src.evaluation.peers import load_peer
from src.models import create_encoder

pytestmark = pytest.mark.usefixtures("two_blocks")
BATCH = Batch([np.full(n, value, np.float32) for n, value in ((1600, 0.1), (3200, 0.2), (1600, 0.3))])


class Model(torch.nn.Module):
    sample_rate = 8000

    def forward(self, audio):
        return audio.abs().mean(1, keepdim=True)


class FrameEncoder(torch.nn.Module):
    """50 ms frames: their mean level, and one."""

    sampling_rate, output_dim, hop_size_in_ms = 16000, 2, 50

    def forward(self, audio):
        level = audio.unflatten(1, (-1, 800)).mean(2)
        return torch.stack([level, torch.ones_like(level)], 2)


@pytest.fixture
def peer(monkeypatch):
    module = types.ModuleType("peer")
    module.__file__ = __file__
    module.load_model = lambda path="": Model()
    module.get_scene_embeddings = lambda audio, model: model(audio)

    def timestamps(audio, model):
        times = torch.arange(audio.shape[1] // 800) * 100.0
        return torch.ones(len(audio), len(times), 2), times.expand(len(audio), -1)

    module.get_timestamp_embeddings = timestamps
    module.FrameEncoder = FrameEncoder
    monkeypatch.setitem(sys.modules, "peer", module)
    return module


def test_any_module_with_the_hear_api_is_an_encoder(peer):
    encoder = load_peer("peer:", "cpu")
    scene = encoder.embed(BATCH, encoder.views(False), False)["scene embeddings"]
    assert scene.rows.shape == (3, 1) and scene.rows[0] < scene.rows[1] < scene.rows[2]
    frames = encoder.embed(BATCH, encoder.views(True), True)["timestamp embeddings"]
    assert frames.counts.tolist() == [1, 2, 1] and frames.times_ms.tolist() == [0.0, 0.0, 100.0, 0.0]
    del peer.get_scene_embeddings
    with pytest.raises(UserError, match="has no get_scene_embeddings"):
        load_peer("peer:", "cpu")
    with pytest.raises(UserError, match="can't be imported"):
        load_peer("no_such_peer:weights", "cpu")


def test_any_encoder_class_of_xares_is_an_encoder(peer):
    encoder = load_peer("peer:FrameEncoder", "cpu")
    scene = encoder.embed(BATCH, encoder.views(False), False)["scene embeddings"]
    np.testing.assert_allclose(scene.rows, [[0.1, 1], [0.2, 1], [0.3, 1]], atol=1e-6)
    frames = encoder.embed(BATCH, encoder.views(True), True)["timestamp embeddings"]
    assert frames.counts.tolist() == [2, 4, 2]
    assert frames.times_ms.tolist() == [25.0, 75.0, 25.0, 75.0, 125.0, 175.0, 25.0, 75.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_dim": 3}, r"\(2, 1600\) samples gave \(2, 2, 2\); X-ARES needs \(2, frames, 3\)"),
        ({"__init__": lambda self, path: None}, "without arguments.*path"),
        ({"forward": lambda self, audio: audio}, "X-ARES needs"),
    ],
)
def test_a_class_that_is_no_encoder_of_xares_is_refused(peer, change, message):
    peer.FrameEncoder = type("FrameEncoder", (FrameEncoder,), change)
    with pytest.raises(UserError, match=message):
        load_peer("peer:FrameEncoder", "cpu").embed(BATCH, ["scene embeddings"], False)


def test_a_class_without_the_attributes_of_xares_is_refused(peer):
    with pytest.raises(UserError, match="that has sampling_rate, output_dim, hop_size_in_ms"):
        peer.Linear = type("Linear", (torch.nn.Module,), {})
        load_peer("peer:Linear", "cpu")


def test_our_encoder_scores_the_same_through_the_adapters(tmp_path, monkeypatch):
    encoder = create_encoder("tiny", seed=5).eval()
    save_encoder(encoder, tmp_path / "encoder")
    monkeypatch.setenv("AUDIO_ENCODER", str(tmp_path / "encoder"))
    random = np.random.default_rng(0)
    batch = Batch([random.normal(size=n).astype(np.float32) * 0.1 for n in (9000, 9000, 16000)])
    expected = FrozenViT("ours", encoder).embed(batch, ["last mean"], False)["last mean"].rows
    for text in ("src.adapters.xares:DashengEncoder", f"src.adapters.hear:{tmp_path / 'encoder'}"):
        found = load_peer(text, "cpu").embed(batch, ["scene embeddings"], False)["scene embeddings"]
        np.testing.assert_allclose(found.rows, expected, atol=1e-5)
