"""Joined files and MP3 without a length are read to their end; formats that cannot seek are read anywhere."""

import contextlib
import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from src.audio.decode import AudioError, decode, decode_blocks, probe
from src.audio.streams import streams

RATE = 16000
TIME = np.arange(5 * RATE)
QUIET = (0.2 * np.sin(TIME * 0.1)).astype(np.float32)
LOUD = (0.3 * np.random.default_rng(0).standard_normal(len(TIME))).astype(np.float32)
MP3_DELAY = 0.12  # seconds of silence that the encoder adds to a part
SLICE = 1e-4  # largest difference of a range from the whole


def encoded(samples: np.ndarray, rate: int = RATE, **form) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **form)
    return file.getvalue()


def mp3(samples: np.ndarray, quality: float, mode: str = "CONSTANT", rate: int = RATE) -> bytes:
    form = {"format": "MP3", "subtype": "MPEG_LAYER_III"}
    return encoded(samples, rate, bitrate_mode=mode, compression_level=quality, **form)


def without_length(data: bytes) -> bytes:
    """Without the frame that holds the Xing header."""
    return data[data.find(data[:2], 10) :]


LOW, HIGH, VARIABLE = mp3(QUIET, 0.99), mp3(LOUD, 0.0), mp3(LOUD, 0.5, "VARIABLE")
TAG = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)


def consistent(file: bytes, seconds: float, within: float) -> np.ndarray:
    """Header, whole, blocks and a range agree."""
    whole = decode(file)
    assert len(whole) / RATE == pytest.approx(seconds, abs=within)
    assert probe(file).seconds == pytest.approx(len(whole) / RATE, abs=2 / RATE)
    np.testing.assert_allclose(np.concatenate(list(decode_blocks(file, 1.3))), whole, atol=SLICE)
    start = 0.6 * seconds
    np.testing.assert_allclose(decode(file, start, 0.7), whole[round(start * RATE) :][: round(0.7 * RATE)], atol=SLICE)
    return whole


@pytest.mark.parametrize(
    "file, parts",
    [
        (without_length(LOW), 1),
        (without_length(HIGH), 1),
        (without_length(VARIABLE), 1),
        (without_length(LOW) + without_length(HIGH), 2),
        (without_length(HIGH) + without_length(LOW), 2),
        (HIGH + LOW, 2),
        (VARIABLE + VARIABLE, 2),
        (HIGH + TAG + LOW, 2),
        (HIGH + mp3(QUIET, 0.5, rate=44100) + b"TAG" + bytes(125), 1.36),
    ],
)
def test_mp3_is_as_long_as_its_frames(file, parts):
    consistent(file, 5 * parts, MP3_DELAY * np.ceil(parts))


@pytest.mark.parametrize("file", [HIGH, VARIABLE, TAG + HIGH, HIGH + b"TAG" + bytes(125)])
def test_mp3_with_its_length_is_left_alone(file):
    assert streams(file) == [file]
    consistent(file, 5, 0.001)


def test_the_length_put_in_front_changes_no_sample():
    repaired, whole = decode(without_length(HIGH)), decode(HIGH)
    shift = len(repaired) - len(repaired[576:])
    np.testing.assert_array_equal(repaired[shift : shift + 60_000], whole[:60_000])


@pytest.mark.parametrize("form", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_joined_files_are_read_one_after_the_other(form, tmp_path):
    first = encoded(QUIET, format=form[0], subtype=form[1])
    second = encoded(LOUD, 8000, format=form[0], subtype=form[1])
    whole = consistent(first + second, 15.0, 0.01)
    np.testing.assert_array_equal(whole, np.concatenate([decode(first), decode(second)]))
    np.testing.assert_array_equal(decode(first + first), np.tile(decode(first), 2))
    (tmp_path / "joined").write_bytes(first + second)
    np.testing.assert_array_equal(decode(tmp_path / "joined"), whole)


@pytest.mark.parametrize(
    "form",
    [
        ("WAV", "GSM610"),
        ("WAV", "G721_32"),
        ("WAV", "NMS_ADPCM_32"),
        ("AU", "G723_24"),
        ("WAV", "IMA_ADPCM"),
        ("AIFF", "DWVW_16"),
    ],
)
def test_formats_that_cannot_seek(form):
    consistent(encoded(QUIET, 8000, format=form[0], subtype=form[1]), 10.0, 0.1)


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 22050, 44099, 44100, 48000, 96000])
def test_a_range_is_a_slice_of_the_whole_at_every_rate(rate):
    file = encoded(LOUD[: min(len(LOUD), int(rate * 1.7))], rate, format="WAV", subtype="FLOAT")
    whole = decode(file)
    for start, seconds in ((0.0, 0.3), (0.1234, 0.3), (0.5, None), (0.7, 5.0), (0.0001, 0.001)):
        end = None if seconds is None else round(start * RATE) + round(seconds * RATE)
        expected = whole[round(start * RATE) : end]
        found = decode(file, start, seconds)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < SLICE


def test_a_mac_leaves_files_beside_that_are_not_the_sound(tmp_path):
    for name, file in (("a.mp3", HIGH), ("a.wav", encoded(QUIET, format="WAV"))):
        (tmp_path / name).write_bytes(file)
        (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
        np.testing.assert_array_equal(decode(tmp_path / name), decode(file))


@pytest.mark.parametrize("value", [3e38, -1e30, 1e11])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_huge_samples_are_refused(value, rate):
    samples = np.zeros((2000, 2), np.float32)
    samples[700] = value
    file = encoded(samples, rate, format="WAV", subtype="FLOAT")
    for read in (decode, lambda file: list(decode_blocks(file))):
        with pytest.raises(AudioError, match=r"not finite|up to 1e"):
            read(file)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(VARIABLE)), junk=st.binary(max_size=300), second=st.sampled_from([b"", LOW, VARIABLE]))
def test_damage_is_read_or_refused_but_never_anything_else(cut, junk, second):
    file = VARIABLE[:cut] + junk + second
    with contextlib.suppress(AudioError):
        assert np.isfinite(decode(file)).all()
