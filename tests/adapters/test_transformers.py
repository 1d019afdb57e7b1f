"""An export opened by `transformers` alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is optional")

from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

from benchmarks.parity import randomize
from src.encoders.load import load_encoder
from src.encoders.save import save_encoder
from src.models import create_mae
from src.models.classifier import AudioClassifier

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An encoder's folder, a classifier's, and the networks."""
    folder = tmp_path_factory.mktemp("exports")
    encoder = randomize(create_mae("tiny"), 0).encoder.eval()
    torch.manual_seed(0)
    classifier = AudioClassifier(encoder, ["dog", "cat", "bird"], layer=[0, 6, None], pooling="mean_std").eval()
    nn.init.normal_(classifier.head[1].weight, std=0.1)
    save_encoder(encoder, folder / "encoder")
    save_encoder(encoder, folder / "classifier", classifier=classifier)
    return folder, encoder, classifier


def test_auto_model_equals_the_encoder_even_in_padded_batches(exports, clips):
    folder, encoder, _ = exports
    model = AutoModel.from_pretrained(folder / "encoder", trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(folder / "encoder", trust_remote_code=True)
    chosen = clips[:4]
    batch = extractor([clip.numpy() for clip in chosen], sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
        for row, clip in enumerate(chosen):
            alone = encoder(clip[None])[0]
            assert (output.last_hidden_state[row, : len(alone)] - alone).abs().max() <= TOLERANCE
            assert (output.pooler_output[row] - encoder.embed(clip[None])[0]).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="16000 Hz"):
        extractor(chosen[0].numpy(), sampling_rate=44100)


@pytest.mark.slow
def test_a_folder_does_not_need_this_project(exports, tmp_path, clips):
    """Run in another folder, without `src` on the path."""
    folder, encoder, _ = exports
    np.save(tmp_path / "clip.npy", clips[0].numpy())
    program = (
        "import sys, numpy, torch\n"
        "sys.modules['src'] = None\n"
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(folder / 'encoder')!r}, trust_remote_code=True)\n"
        "with torch.no_grad(): output = model(torch.from_numpy(numpy.load('clip.npy'))[None])\n"
        "numpy.save('embedding.npy', output.pooler_output.numpy())\n"
    )
    subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, check=True, env={"HF_HOME": str(tmp_path)})
    with torch.no_grad():
        expected = encoder.embed(clips[0][None])
    assert np.abs(np.load(tmp_path / "embedding.npy") - expected.numpy()).max() <= TOLERANCE


def test_the_audio_classification_pipeline(exports, clips):
    folder, _, classifier = exports
    classify = pipeline("audio-classification", model=str(folder / "classifier"), trust_remote_code=True)
    scores = {entry["label"]: entry["score"] for entry in classify(clips[0].numpy())}
    with torch.no_grad():
        expected = classifier.probabilities(classifier(clips[0][None]))[0].tolist()
    assert [scores[name] for name in ("dog", "cat", "bird")] == pytest.approx(expected, abs=TOLERANCE)
    assert len(classify([clip.numpy() for clip in clips[:3]], batch_size=3)) == 3


def test_a_new_head_learns_and_is_saved(exports, clips, tmp_path):
    folder, encoder, _ = exports
    model = AutoModelForAudioClassification.from_pretrained(folder / "encoder", trust_remote_code=True, num_labels=4)
    assert torch.isfinite(model(clips[0][None], labels=torch.tensor([2])).loss)
    model(clips[0][None], labels=torch.tensor([[0.0, 1.0, 1.0, 0.0]])).loss.backward()
    assert model.head[1].weight.grad.abs().sum() > 0 and model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "tuned")
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "tuned", trust_remote_code=True)
    assert torch.equal(again.head[1].weight, model.head[1].weight)
    assert torch.equal(load_encoder(tmp_path / "tuned").norm.weight, encoder.norm.weight)
