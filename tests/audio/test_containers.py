"""AAC, MP4, WebM, Matroska and WMA through PyAV: the sound that went in, in its place; ranges; damage; every door."""

import io

import numpy as np
import pytest
import soxr
from scipy.signal import correlate

from src.audio.decode import SAMPLE_RATE, AudioError, channel_peak, decode, decode_blocks, decode_ranges, probe

av = pytest.importorskip("av", reason='needs PyAV: pip install "audio-encoder[av]"')

SECONDS = 10
KINDS = {  # suffix: container, codec, rate, channels
    "m4a": ("ipod", "aac", 44100, 2),
    "mp4": ("mp4", "aac", 48000, 1),
    "mov": ("mov", "pcm_s16le", 44100, 2),
    "aac": ("adts", "aac", 44100, 1),
    "webm": ("webm", "libopus", 48000, 1),
    "mkv": ("matroska", "flac", 44100, 2),
    "wma": ("asf", "wmav2", 44100, 2),
}
LOSSLESS = ("mov", "mkv")


def write(suffix: str, waveform: np.ndarray) -> bytes:
    """Encode (T,) at 16 kHz; a second channel is half as loud."""
    container, codec, rate, channels = KINDS[suffix]
    samples = soxr.resample(waveform, SAMPLE_RATE, rate)
    samples = np.stack([samples, samples / 2])[:channels].astype(np.float32)
    file, layout = io.BytesIO(), "mono" if channels == 1 else "stereo"
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options={"aac_pns": "0"} if codec == "aac" else {})
        stream.layout, stream.bit_rate = layout, 128_000
        stream.codec_context.open()
        size = stream.codec_context.frame_size or None
        converter = av.AudioResampler(stream.codec_context.format, layout, rate, size)
        for start in range(0, samples.shape[1], 1024):
            block = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
            frame.sample_rate, frame.pts = rate, start
            for converted in converter.resample(frame):
                output.mux(stream.encode(converted))
        for converted in converter.resample(None):
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def original(long_audio):
    return long_audio[: SECONDS * SAMPLE_RATE].numpy()


@pytest.fixture(scope="module")
def files(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("containers")
    for suffix in KINDS:
        (folder / f"a.{suffix}").write_bytes(write(suffix, original))
    return folder


@pytest.mark.parametrize("suffix", KINDS)
def test_the_sound_is_where_it_was(files, original, suffix):
    header = probe(files / f"a.{suffix}")
    assert (header.sample_rate, header.channels) == KINDS[suffix][2:]
    assert header.seconds == pytest.approx(SECONDS, abs=0.15 if suffix in ("aac", "wma") else 0.03)
    found = decode(files / f"a.{suffix}")
    expected = original if KINDS[suffix][3] == 1 else original * 0.75
    at = slice(SAMPLE_RATE, 8 * SAMPLE_RATE)
    match = correlate(found[: at.stop + 4000], expected[at], "valid", "fft")
    delay = int(np.argmax(match)) - at.start
    assert delay == 0 or suffix in ("aac", "wma")  # which do not tell the encoder's
    error = found[at.start + delay : at.stop + delay] - expected[at]
    assert np.square(error).mean() < (1e-3 if suffix in LOSSLESS else 0.1) * np.square(expected[at]).mean()


@pytest.mark.parametrize("suffix", KINDS)
def test_a_range_is_that_part_of_the_whole(files, suffix):
    path = files / f"a.{suffix}"
    whole = decode(path)
    spans = [(0.0, 1.0), (0.3, 1.0), (1.7, 0.5), (5.0, 2.0), (7.123, 2.0), (9.5, 2.0)]
    for (start, seconds), run in zip(spans, decode_ranges(path, spans), strict=True):
        first = round(start * SAMPLE_RATE)
        expected = whole[first : first + round(seconds * SAMPLE_RATE)]
        for found in (decode(path, start, seconds), decode(path.read_bytes(), start, seconds), run):
            assert len(found) == len(expected)
            np.testing.assert_allclose(found, expected, atol=2e-6)
    with pytest.raises(AudioError, match="no samples"):
        decode(path, 60.0, 1.0)


@pytest.mark.parametrize("suffix", KINDS)
def test_blocks_and_peak(files, suffix):
    path = files / f"a.{suffix}"
    whole, blocks = decode(path), np.concatenate(list(decode_blocks(path, 2.5)))
    assert abs(len(whole) - len(blocks)) <= 1
    np.testing.assert_allclose(blocks[: len(whole)], whole[: len(blocks)], atol=1e-5)
    assert channel_peak(path) >= np.abs(whole).max() * 0.99


@pytest.mark.parametrize("suffix", KINDS)
def test_damage_is_an_error_or_less_sound_never_a_crash(files, suffix):
    data = (files / f"a.{suffix}").read_bytes()
    for broken in (data[:20], data[: len(data) // 2], data[:200] + bytes(2000) + data[2200:]):
        try:
            assert 0 < len(decode(broken)) <= (SECONDS + 1) * SAMPLE_RATE
        except AudioError as error:
            assert "\n" not in str(error) and len(str(error)) < 120


def test_a_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "silent.mp4"), "w") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    with pytest.raises(AudioError, match="no sound in it"):
        probe(tmp_path / "silent.mp4")


def test_without_pyav_the_reason_names_the_extra(files, monkeypatch):
    monkeypatch.setattr("src.audio.containers.HAS_AV", False)
    with pytest.raises(AudioError, match=r"needs PyAV; pip install .audio-encoder\[av\]"):
        probe(files / "a.m4a")
