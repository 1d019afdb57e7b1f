"""Encoding a clip in chunks gives the same tokens as encoding it whole."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.models.long_clips import encode_long_clip, pool_chunks
from src.models.vit import AudioViT, pool

TOLERANCE = 1e-5
CHUNK = 252 * 4 * 160


@pytest.mark.parametrize("samples", [1, 700, 16000, CHUNK - 1, CHUNK, CHUNK + 159, CHUNK + 700, CHUNK + 801, 3 * CHUNK])
def test_equal_to_the_whole(small_encoder, long_audio, samples):
    waveform = 3 * long_audio[:samples]
    with torch.no_grad():
        whole = small_encoder(waveform[None], layer=[2, None])[0]
    chunks = list(encode_long_clip(small_encoder, lambda: np.array_split(waveform.numpy(), 5), [2, None]))
    assert (torch.cat(chunks) - whole).abs().max() <= TOLERANCE
    for pooling in ("mean", "max", "mean_std", "mean_max"):
        pooled = pool(whole[None], torch.tensor([len(whole)]), pooling)[0]
        torch.testing.assert_close(pool_chunks(chunks, pooling), pooled, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 30000), block=st.integers(1, 9000), patch_frames=st.integers(1, 9))
def test_any_length_block_and_patch(long_audio, samples, block, patch_frames):
    """With small chunks, so that there are many boundaries."""
    torch.manual_seed(0)
    encoder = AudioViT(16, 1, 2, max_tokens=5, patch_frames=patch_frames).eval()
    waveform = long_audio[:samples]
    with torch.no_grad():
        whole = encoder(waveform[None])[0]
    blocks = [part.numpy() for part in waveform.split(block)]
    chunks = list(encode_long_clip(encoder, lambda: blocks))
    assert sum(map(len, chunks)) == len(whole)
    assert (torch.cat(chunks) - whole).abs().max() <= TOLERANCE


def test_the_floor_is_relative_to_the_maximum_of_the_whole_clip(small_encoder, long_audio):
    """A quiet first chunk and a loud last one."""
    quiet, loud = 1e-5 * long_audio[:CHUNK], 30 * long_audio[:16000]
    waveform = torch.cat([quiet, loud])
    with torch.no_grad():
        whole = small_encoder(waveform[None])[0]
        assert (small_encoder(quiet[None])[0] - whole[:252]).abs().max() > 1e-3  # the chunk alone has another floor
    tokens = torch.cat(list(encode_long_clip(small_encoder, lambda: [waveform.numpy()])))
    assert (tokens - whole).abs().max() <= TOLERANCE


def test_training_mode_is_refused(small_encoder):
    with pytest.raises(AssertionError, match="eval"):
        next(encode_long_clip(small_encoder.train(), lambda: [np.zeros(16000, np.float32)]))
