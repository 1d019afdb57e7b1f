"""A clip read in pieces gives the tokens of the clip as a whole."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.models.pieces import pool_pieces, tokens_in_pieces
from src.models.vit import AudioViT, pool

TOLERANCE = 1e-5
CHUNK = 252 * 4 * 160


@pytest.mark.parametrize("samples", [1, 700, 16000, CHUNK - 1, CHUNK, CHUNK + 159, CHUNK + 700, CHUNK + 801, 3 * CHUNK])
def test_equal_to_the_whole(small_encoder, long_audio, samples):
    waveform = 3 * long_audio[:samples]
    with torch.no_grad():
        whole = small_encoder(waveform[None], layer=[2, None])[0]
    pieces = list(tokens_in_pieces(small_encoder, lambda: np.array_split(waveform.numpy(), 5), [2, None]))
    assert (torch.cat(pieces) - whole).abs().max() <= TOLERANCE
    for pooling in ("mean", "max", "mean_std", "mean_max"):
        pooled = pool(whole[None], torch.tensor([len(whole)]), pooling)[0]
        torch.testing.assert_close(pool_pieces(pieces, pooling), pooled, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 30000), block=st.integers(1, 9000), patch_frames=st.integers(1, 9))
def test_any_length_block_and_patch(long_audio, samples, block, patch_frames):
    """Small chunks, so that many cuts are met."""
    torch.manual_seed(0)
    encoder = AudioViT(16, 1, 2, max_tokens=5, patch_frames=patch_frames).eval()
    waveform = long_audio[:samples]
    with torch.no_grad():
        whole = encoder(waveform[None])[0]
    blocks = [part.numpy() for part in waveform.split(block)]
    pieces = list(tokens_in_pieces(encoder, lambda: blocks))
    assert sum(map(len, pieces)) == len(whole)
    assert (torch.cat(pieces) - whole).abs().max() <= TOLERANCE


def test_the_floor_lies_under_the_loudest_place_of_the_whole_clip(small_encoder, long_audio):
    """A quiet first chunk beside a loud last one."""
    quiet, loud = 1e-5 * long_audio[:CHUNK], 30 * long_audio[:16000]
    waveform = torch.cat([quiet, loud])
    with torch.no_grad():
        whole = small_encoder(waveform[None])[0]
        assert (small_encoder(quiet[None])[0] - whole[:252]).abs().max() > 1e-3  # alone it is another sound
    pieces = torch.cat(list(tokens_in_pieces(small_encoder, lambda: [waveform.numpy()])))
    assert (pieces - whole).abs().max() <= TOLERANCE


def test_training_mode_is_refused(small_encoder):
    with pytest.raises(AssertionError, match="eval"):
        next(tokens_in_pieces(small_encoder.train(), lambda: [np.zeros(16000, np.float32)]))
