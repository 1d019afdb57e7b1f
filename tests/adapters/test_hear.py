"""What the HEAR 2021 API asks for: shapes, sizes, times, independence of the batch."""

import pytest
import torch

from benchmarks.parity import randomise
from src.adapters import hear
from src.checkpoint import save_encoder
from src.models import create_mae

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear") / "encoder"
    save_encoder(randomise(create_mae("tiny"), 0).encoder, folder)
    return hear.load_model(str(folder))


def test_attributes(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16000 and model.scene_embedding_size == model.timestamp_embedding_size == 192


@pytest.mark.parametrize("seconds", [0.1, 1.0, 4.3, 65.0])
def test_shapes_types_and_times(model, long_audio, seconds):
    audio = long_audio.repeat(3)[: round(seconds * 16000)][None].repeat(2, 1)
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == times.dtype == torch.float32 and not embeddings.requires_grad
    assert embeddings.shape == (2, int(seconds / 0.04), 192) and times.shape == embeddings.shape[:2]
    torch.testing.assert_close(times[0], 15 + 40.0 * torch.arange(times.shape[1]), atol=0.1, rtol=0)
    scene = hear.get_scene_embeddings(audio, model)
    assert scene.shape == (2, 192) and (scene - embeddings.mean(1)).abs().max() <= TOLERANCE
    assert times[0, -1] <= 1000 * seconds


def test_a_sound_does_not_depend_on_the_batch_nor_on_its_parts(model, long_audio, monkeypatch):
    audio = torch.stack([long_audio[:16000], 30 * long_audio[16000:32000], 1e-4 * long_audio[32000:48000]])
    together = hear.get_timestamp_embeddings(audio, model)[0]
    scenes = hear.get_scene_embeddings(audio, model)
    monkeypatch.setattr(hear, "_BATCH_SECONDS", 1.0)
    for row in range(3):
        assert (
            hear.get_timestamp_embeddings(audio[row : row + 1], model)[0][0] - together[row]
        ).abs().max() <= TOLERANCE
    assert (hear.get_scene_embeddings(audio, model) - scenes).abs().max() <= TOLERANCE


@pytest.mark.parametrize("onset_ms", [400, 1234, 1999])
def test_an_onset_lies_within_50_ms_of_the_token_that_hears_it_first(model, onset_ms):
    """The patch embedding, since attention spreads an onset over all tokens."""
    torch.manual_seed(0)
    noise = 1e-3 * torch.randn(48000)
    click = noise.clone()
    click[onset_ms * 16 : onset_ms * 16 + 160] += 0.5 * torch.randn(160)
    tokens = [model.encoder(sound[None], layer=0)[0] for sound in (noise, click)]
    change = (tokens[1] - tokens[0]).norm(dim=1)
    times = hear.get_timestamp_embeddings(noise[None], model)[1][0]
    assert abs(float(times[change.argmax()]) - onset_ms) <= 50


def test_a_wrong_shape_is_refused(model):
    with pytest.raises(ValueError, match="n_sounds, n_samples"):
        hear.get_scene_embeddings(torch.zeros(16000), model)
