"""The front end equals torchaudio's for a single clip, and a clip's result does not depend on its batch."""

from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio.transforms as AT
from torch import nn

from src.models.log_mel import LogMel
from tests.models.batches import pad_batch

DB_TOLERANCE = 1e-4
SHARED = Path(__file__).parents[3] / "shared" / "audio"


@pytest.fixture(scope="module")
def log_mel() -> LogMel:
    return LogMel()


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    mel = AT.MelSpectrogram(sample_rate=16000, n_fft=512, win_length=512, hop_length=160, f_max=8000, n_mels=64)
    return nn.Sequential(mel, AT.AmplitudeToDB(top_db=120))


def sine(hertz: float, num_samples: int = 16000) -> torch.Tensor:
    return torch.sin(torch.arange(num_samples) / 16000 * hertz * 2 * torch.pi)


def difference_to(reference, log_mel, waveform) -> float:
    ours, theirs = log_mel(waveform[None])[0], reference(waveform[None])
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def test_equals_torchaudio_on_real_clips(log_mel, reference, clips):
    for clip in clips:
        assert difference_to(reference, log_mel, clip) <= DB_TOLERANCE


SIGNALS = {
    "silence": torch.zeros(16000),
    "constant": torch.full((16000,), 0.3),
    "click": torch.zeros(16000).index_fill(0, torch.tensor(8000), 1.0),
    "quiet sine": 1e-5 * sine(440),
    "full-scale sine": sine(4000),
    "far above full scale": 1e4 * sine(50),
    "loud start, silent end": torch.cat([sine(3000, 8000), torch.zeros(8000)]),
    "square wave": sine(200).sign(),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_equals_torchaudio_on_extremes(log_mel, reference, name):
    """Near the dB floor the rounding errors of the FFT itself show."""
    assert difference_to(reference, log_mel, SIGNALS[name]) <= DB_TOLERANCE


@pytest.mark.parametrize("name", ["dc_offset", "clipped", "silence", "over_full_scale"])
def test_equals_torchaudio_on_odd_recordings(log_mel, reference, name):
    path = SHARED / "bad" / f"{name}.wav"
    if not path.exists():
        pytest.skip(f"{path.name} is absent")
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert difference_to(reference, log_mel, torch.from_numpy(samples[:, 0].copy())) <= DB_TOLERANCE


@pytest.mark.parametrize("num_samples", [800, 801, 959, 960, 961, 1599, 1600, 1601, 12345])
def test_equals_torchaudio_at_any_length(log_mel, reference, long_audio, num_samples):
    assert difference_to(reference, log_mel, long_audio[:num_samples]) <= DB_TOLERANCE
    assert log_mel.num_frames(num_samples) == log_mel(long_audio[None, :num_samples])[0].shape[2]


@pytest.mark.parametrize("num_samples", [0, 1, 160, 256, 799])
def test_short_clips_are_padded_to_50_ms(log_mel, reference, long_audio, num_samples):
    clip = long_audio[4000 : 4000 + num_samples]
    ours, valid = log_mel(clip[None])
    theirs = reference(nn.functional.pad(clip, (0, 800 - num_samples))[None])
    assert valid is None and ours.shape == (1, 64, 6) and log_mel.num_frames(num_samples) == 6
    assert (ours - theirs).abs().max() <= DB_TOLERANCE


@pytest.mark.parametrize("padding", [0.0, None, float("nan")], ids=["zeros", "noise", "nan"])
def test_a_clip_is_the_same_alone_and_in_a_batch(log_mel, clips, padding):
    """With any padding, and next to a clip 80 dB louder, which could raise the dB floor."""
    lengths = [1, 159, 160, 161, 256, 257, 799, 800, 801, 1599, 1600, 1601]
    cut = [clip[:num_samples] for clip, num_samples in zip(clips[1:], lengths, strict=False)]
    batch = [clips[0] * 1e4, *cut, clips[20] * 1e-4, torch.zeros(5000)]
    waveform, length = pad_batch(batch, padding, surplus=777)
    together, valid = log_mel(waveform, length)
    assert together.isfinite().all()
    for clip, row, row_valid in zip(batch, together, valid, strict=True):
        alone = log_mel(clip[None])[0][0]
        assert row_valid.sum() == alone.shape[1] == log_mel.num_frames(len(clip))
        assert row_valid[: alone.shape[1]].all()
        assert (row[:, : alone.shape[1]] - alone).abs().max() <= DB_TOLERANCE


def test_the_floor_is_120_db_below_the_clips_own_maximum(log_mel):
    clip = torch.cat([sine(1000, 8000) * 100, torch.zeros(8000)])
    decibel = log_mel(clip[None])[0]
    assert decibel.max() > 60  # otherwise the floor would be `amin`, -100 dB
    assert decibel.max() - decibel.min() == pytest.approx(120, abs=DB_TOLERANCE)
    assert log_mel(torch.zeros(1, 8000))[0].unique().tolist() == [-100.0]


def test_full_lengths_equal_no_lengths(log_mel, long_audio):
    waveform = long_audio[: 3 * 7000].reshape(3, 7000)
    with_length, valid = log_mel(waveform, torch.full((3,), 7000))
    assert valid is None
    assert torch.equal(with_length, log_mel(waveform)[0])


def test_a_length_beyond_the_waveform_is_refused(log_mel):
    with pytest.raises(ValueError, match="length 9000 is more than the 8000 samples"):
        log_mel(torch.zeros(2, 8000), torch.tensor([8000, 9000]))


def test_stays_in_fp32_under_autocast_and_from_half(log_mel, clips):
    expected = log_mel(clips[0][None])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = log_mel(clips[0][None])[0]
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert log_mel(clips[0][None].bfloat16())[0].dtype == torch.float32


def test_the_waveform_is_not_modified(log_mel):
    waveform = torch.rand(2, 5000)
    before = waveform.clone()
    log_mel(waveform, torch.tensor([100, 5000]))
    assert torch.equal(waveform, before)
