"""Arrays as people have them: scaled by their type, or refused with what was found."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from src.audio.arrays import to_mono_16k
from src.audio.decode import AudioError

SOUND = (0.5 * np.sin(np.arange(1600) * 0.1)).astype(np.float32)
STEREO = np.stack([SOUND, np.roll(SOUND, 40)])


@pytest.mark.parametrize(
    "given, step",
    [
        (np.round(SOUND * 32768).astype(np.int16), 2**-15),
        (np.round(SOUND.astype(float) * 2**31).astype(np.int32), 1e-7),
        (np.round(SOUND * 128 + 128).astype(np.uint8), 2**-7),
        (np.round(SOUND * 128).astype(np.int8), 2**-7),
        (SOUND.astype(np.float64), 1e-7),
        (SOUND.astype(np.float16), 1e-3),
        (SOUND.tolist(), 1e-7),
        (torch.from_numpy(SOUND).requires_grad_(), 0.0),
        (torch.from_numpy(SOUND).bfloat16(), 4e-3),
        (torch.from_numpy(np.round(SOUND * 32768).astype(np.int16)), 2**-15),
        (SOUND[None], 0.0),
        (SOUND[:, None], 0.0),
    ],
)
def test_every_type_gives_the_same_samples(given, step):
    waveform = to_mono_16k(given, 16000)
    assert waveform.dtype == np.float32 and waveform.shape == SOUND.shape
    assert np.abs(waveform - SOUND).max() <= step


@pytest.mark.parametrize("given", [STEREO, STEREO.T, np.round(STEREO * 32768).astype(np.int16).T])
def test_channels_are_averaged_on_either_axis(given):
    assert np.abs(to_mono_16k(given, 16000) - STEREO.mean(0)).max() <= 2**-15


@pytest.mark.parametrize(
    "given, rate, said",
    [
        (SOUND * 40000, 16000, r"up to 2\d{4}.*\[-1, 1\]"),
        (np.full(100, 3e38), 16000, r"up to 3e\+38"),
        (np.full(100, 1e300), 16000, "not finite"),
        (np.array([0.1, np.nan]), 16000, "not finite"),
        (np.arange(100), 16000, "type int64"),
        (SOUND > 0, 16000, "type bool"),
        (SOUND.astype(complex), 16000, "type complex"),
        (np.zeros((64, 400)), 16000, "which axis"),
        (np.zeros((2, 2)), 16000, "which axis"),
        (np.zeros((1, 2, 100)), 16000, "shape"),
        ([], 16000, "shape"),
        (np.float32(1), 16000, "shape"),
        ([[0.1, 0.2], [0.3]], 16000, "different lengths"),
        (["a"], 16000, "type"),
        (SOUND, 0, "rate of 0 Hz"),
    ],
)
def test_refused_with_what_was_found(given, rate, said):
    with pytest.raises(AudioError, match=said):
        to_mono_16k(given, rate)


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(st.sampled_from([np.int8, np.int16, np.int32, np.uint8]), hnp.array_shapes(max_dims=2, max_side=40)))
def test_integers_are_within_full_scale_or_refused(array):
    try:
        waveform = to_mono_16k(array, 16000)
    except AudioError as error:
        assert "shape" in str(error)
    else:
        assert np.abs(waveform).max() <= 1 and np.isfinite(waveform).all()
