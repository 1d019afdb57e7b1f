"""The requirements of the HEAR 2021 API: shapes, sizes, times, independence of the batch."""

import pytest
import torch

from benchmarks.parity import randomize
from src.adapters import hear
from src.encoders.save import save_encoder
from src.models import create_mae
from src.models.vit import AudioViT

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hear") / "encoder"
    save_encoder(randomize(create_mae("tiny"), 0).encoder, folder)
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


def test_a_sound_does_not_depend_on_its_batch(model, long_audio, monkeypatch):
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
def test_an_onset_is_within_50_ms_of_the_first_token_it_changes(long_audio, onset_ms):
    """With an encoder without blocks, since attention spreads an onset over all tokens."""
    torch.manual_seed(0)
    model = hear.HearModel(AudioViT(48, 0, 4)).eval()
    sound = long_audio[:48000] + 1e-3 * torch.randn(48000)
    click = sound.clone()
    click[onset_ms * 16] += 0.5
    embeddings, times = hear.get_timestamp_embeddings(torch.stack([sound, click]), model)
    changed = (embeddings[1] - embeddings[0]).norm(dim=1) > 1e-3
    assert 1 <= changed.sum() <= 2
    assert (times[0, changed] - onset_ms).abs().max() <= 50


def test_a_long_sound_ends_at_its_last_token(model, long_audio):
    """No drift: a click near the end of 65 s."""
    audio = torch.stack([long_audio.repeat(3)[: 65 * 16000]] * 2) + 1e-3
    audio[1, round(64.5 * 16000)] += 0.5
    embeddings, times = hear.get_timestamp_embeddings(audio, model)
    chunk = model.encoder.max_tokens  # attention stays within a chunk
    changed = (embeddings[1] - embeddings[0]).norm(dim=1) > 1e-3
    assert changed.any() and not changed[: len(changed) // chunk * chunk].any()
    assert 1000 * 65 - 40 <= times[0, -1] <= 1000 * 65


def test_float_64_input_gives_fp32_without_gradients(model, long_audio):
    audio = long_audio[None, :16000]
    expected = hear.get_scene_embeddings(audio, model)
    model.train()
    scene = hear.get_scene_embeddings(audio.double().requires_grad_(), model)
    assert scene.dtype == torch.float32 and not scene.requires_grad
    assert (scene - expected).abs().max() <= TOLERANCE


def test_no_batch_is_longer_than_allowed(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model.encoder, "forward", lambda part, *_: seen.append(part.shape) or part.new_zeros(1, 1, 192))
    hear.get_timestamp_embeddings(torch.zeros(100, 10 * 16000), model)
    assert len(seen) == 9 and sum(rows for rows, _ in seen) == 100
    assert max(rows * samples for rows, samples in seen) <= hear._BATCH_SECONDS * 16000


@pytest.mark.parametrize("shape", [(16000,), (1, 1, 16000), (0, 16000), (2, 0)])
@pytest.mark.parametrize("embed", [hear.get_scene_embeddings, hear.get_timestamp_embeddings])
def test_a_wrong_shape_is_refused(model, shape, embed):
    with pytest.raises(ValueError, match="n_sounds, n_samples"):
        embed(torch.zeros(shape), model)
