"""The ONNX export in onnxruntime equals PyTorch for any batch size and length, front end included."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="exporting to ONNX is optional")
pytest.importorskip("onnxruntime", reason="exporting to ONNX is optional")

import onnxruntime

from benchmarks.parity import randomize
from src import export
from src.encoders import onnx
from src.encoders.save import save_encoder
from src.errors import UserError
from src.evaluation.embeddings import calibrate_norm
from src.models import create_mae
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.vit import AudioViT

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory, two_blocks):
    folder = tmp_path_factory.mktemp("onnx")
    encoder = randomize(create_mae("tiny"), 0).encoder.eval()
    save_encoder(encoder, folder / "encoder")
    assert export.main([str(folder / "encoder"), "--format", "onnx", "--out", str(folder / "a.onnx")]) == 0
    assert [path.name for path in folder.glob("*.onnx*")] == ["a.onnx"]
    return encoder, folder


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.049, 0.05, 0.1, 1.0, 5.3, 10.08, 30.24, 31.0])
def test_equal_to_pytorch(exported, long_audio, batch, seconds):
    encoder, folder = exported
    samples = round(seconds * 16000)
    waveform = torch.stack([(row + 1) * long_audio[row * 4000 : row * 4000 + samples] for row in range(batch)])
    session = onnxruntime.InferenceSession(folder / "a.onnx")
    embedding, tokens = session.run(["embedding", "tokens"], {"waveform": waveform.numpy()})
    with torch.no_grad():
        expected = encoder(waveform).numpy()
        assert tokens.shape == expected.shape and np.abs(tokens - expected).max() <= TOLERANCE
        assert np.abs(embedding - encoder.embed(waveform).numpy()).max() <= TOLERANCE


@pytest.mark.slow
def test_a_layer_of_a_network_in_training_mode_with_external_weights(tmp_path, clips, long_audio, monkeypatch):
    encoder = randomize(create_mae("tiny", drop_path=0.5, layer_scale=0.2), 0).encoder.train()
    calibrate_norm(encoder, [clip.numpy() for clip in clips])
    monkeypatch.setattr(onnx, "MAX_BYTES", 2**20)
    onnx.export_onnx(encoder, tmp_path / "b.onnx", layer=1, pooling="mean_std")
    assert {path.name for path in tmp_path.iterdir()} == {"b.onnx", "b.onnx.data"}
    assert encoder.training and all(block.training for block in encoder.blocks)
    encoder.eval()
    waveform = long_audio[None, :32000]
    embedding, _ = onnxruntime.InferenceSession(tmp_path / "b.onnx").run(None, {"waveform": waveform.numpy()})
    with torch.no_grad():
        assert np.abs(embedding - encoder.embed(waveform, None, 1, "mean_std").numpy()).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "pooling"), [(1, "mean_std"), (1, None), ([0, 1, None], "mean")])
def test_a_classifier_has_its_logits_and_class_names(tmp_path, long_audio, layer, pooling):
    encoder = AudioViT(48, 2, 3).eval()
    initialize(encoder, 0, "encoder")
    classifier = AudioClassifier(encoder, ["dog", "Ü, b"], layer, pooling=pooling, multi=pooling is None).eval()
    torch.nn.init.normal_(classifier.head[1].weight, std=0.02, generator=torch.Generator().manual_seed(0))
    save_encoder(encoder, tmp_path / "clf", classifier=classifier)
    assert export.main([str(tmp_path / "clf"), "--format", "onnx", "--out", str(tmp_path / "clf.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "clf.onnx")
    waveform = long_audio[None, :32000]
    logits, embedding, tokens = session.run(["logits", "embedding", "tokens"], {"waveform": waveform.numpy()})
    with torch.no_grad():
        assert np.abs(logits - classifier(waveform).numpy()).max() <= TOLERANCE
        assert np.abs(tokens - encoder(waveform, None, layer).numpy()).max() <= TOLERANCE
    assert embedding.shape == (1, {None: 48, "mean_std": 96, "mean": 3 * 48}[pooling])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["dog", "Ü, b"]
    assert about["activation"] == ("softmax" if pooling else "sigmoid")


def test_the_file_contains_no_local_paths(exported):
    _, folder = exported
    content = (folder / "a.onnx").read_bytes()
    assert b"encoder.blocks.0" in content
    assert not any(str(path).encode() in content for path in (Path(__file__).parents[2], Path(torch.__file__).parent))


def test_without_the_packages(exported, monkeypatch):
    encoder, folder = exported
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        onnx.export_onnx(encoder, folder / "c.onnx")
    assert not (folder / "c.onnx").exists()


def test_nothing_is_overwritten(exported, capsys):
    _, folder = exported
    assert export.main([str(folder / "encoder"), "--format", "onnx", "--out", str(folder / "a.onnx")]) == 2
    assert "already" in capsys.readouterr().err
