"""Sound that is hardly meant so is recognised, and ordinary sound is not taken for it."""

import numpy as np
import pytest
import soundfile

from src.audio.decode import decode
from src.audio.levels import Levels, describe_oddities, oddity

TIME = np.arange(16000) / 16000
TONE = (0.3 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)
NOISE = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)


@pytest.mark.parametrize(
    "waveform, said",
    [
        (TONE, ""),
        (
            np.sin(2 * np.pi * 400 * (np.arange(160_000) + 4) / 16000).astype(np.float32),
            "",
        ),  # a grid has one value
        (NOISE, ""),
        (1e-5 * TONE, ""),
        (np.concatenate([TONE, np.zeros(100_000, np.float32)]), ""),  # padded, as many sets are
        (TONE + np.float32(0.5), ""),
        (np.clip(2 * TONE, -0.5, 0.5), ""),
        (np.clip(20 * TONE, -1, 1), "clipping"),
        (np.full(16000, 0.5, np.float32), "a constant"),
        (np.concatenate([NOISE[:4000], np.full(12000, 0.2, np.float32)]), "a constant"),
        (np.zeros(16000, np.float32), "digital silence"),
        (20000 * TONE, "integers"),
        (TONE[1:2], ""),
    ],
)
def test_what_is_said(waveform, said):
    assert said in oddity(waveform) and bool(oddity(waveform)) == bool(said)


@pytest.mark.parametrize("other, said", [(-TONE, "channels that cancel each other"), (None, "digital silence")])
def test_channels_that_cancel_are_told_from_silence(tmp_path, other, said):
    channels = np.stack([TONE, other], 1) if other is not None else np.zeros((16000, 2))
    soundfile.write(tmp_path / "a.wav", channels, 16000)
    assert oddity(decode(tmp_path / "a.wav"), lambda: tmp_path / "a.wav") == said


@pytest.mark.parametrize("level, said", [(0.0, "channels that cancel each other"), (2e-4, ""), (-0.5, "a constant")])
def test_a_long_clip_is_judged_as_a_whole(tmp_path, level, said):
    """Channels are looked at once, at the end; most of the clip may be in some of its blocks only."""
    mean = np.full(8 * 16000, level, np.float32)
    mean[:32000] += 0.2 * NOISE.repeat(2) if level else 0
    blocks, read = np.split(mean, 8), []
    soundfile.write(tmp_path / "a.wav", np.stack([mean + 0.4, mean - 0.4], 1), 16000, subtype="FLOAT")
    levels = Levels()
    assert sum(map(len, levels.watch(blocks))) == len(mean)
    assert said in levels.oddity(lambda: read.append(1) or tmp_path / "a.wav")
    assert len(read) == (level == 0)


def test_a_sentence_for_each_kind():
    odd = [(f"{i}.wav", "digital silence") for i in range(5)] + [("x.wav", "clipping")]
    first, second = describe_oddities(odd)
    assert first == "5 clips with digital silence, used as is: 0.wav, 1.wav, 2.wav, ..."
    assert second == "1 clip with clipping, used as is: x.wav"
