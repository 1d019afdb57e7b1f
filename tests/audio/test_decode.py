"""Every format and every kind of damage, against the known contents of the files."""

import multiprocessing
import re
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr

from src.audio.decode import SAMPLE_RATE, AudioError, decode, decode_ranges, probe
from tests.training.sources import DEMO

REFUSED = {  # file: what the message says
    "all_nan.wav": "not finite",
    "empty.wav": "not readable",
    "inf.wav": "not finite",
    "noise_bytes.flac": "not readable",
    "one_nan.wav": "not finite",
    "text.wav": "not readable",
    "truncated.flac": "damaged",
    "truncated_header.wav": "not readable",
    "x.wav": "a folder",
    "zero_rate.wav": "not readable|sample rate",
    "zero_samples.wav": "no samples",
}
READ = {  # file: samples at 16 kHz
    "10ms.wav": 160, "192000_51.wav": 1600, "1_sample.wav": 1, "22050.wav": 16000, "44100_stereo.wav": 16000,
    "8000.wav": 16000, "8_channels.wav": 8000, "96000.wav": 16000, "bogus_length.wav": 16000, "clipped.wav": 16000,
    "dc_offset.wav": 16000, "f64.wav": 16000, "over_full_scale.wav": 16000, "really_mp3.wav": 16000, "s24.wav": 16000,
    "silence.wav": 16000, "späce and ünïcode 音 🎵.wav": 16000, "truncated.wav": 5318, "u8.wav": 16000,
}  # fmt: skip

LOSSLESS = 1e-4  # largest difference from the 64-bit file: 16-bit rounding is 1.5e-5, dither twice that
CORRELATION = {  # least, with the 64-bit file
    "44100.wav": 0.999999, "48000.flac": 0.999999,  # resampled twice
    "u8.wav": 0.9999, "mp3.mp3": 0.9997, "opus.opus": 0.9997, "vorbis.ogg": 0.9997,
}  # fmt: skip
SEEK = {".wav": 0.0, ".flac": 0.0, ".ogg": 1e-6, ".opus": 1e-3, ".mp3": 1e-3}  # a crop's difference from the whole
RESAMPLED = 1e-4  # the same at other rates, edges included
EDGE = SAMPLE_RATE // 20


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(bad_files, name):
    with pytest.raises(AudioError, match=REFUSED[name]):
        decode(bad_files / name)


@pytest.mark.parametrize("name", READ)
def test_reads(bad_files, name):
    waveform = decode(bad_files / name)
    assert (waveform.shape, waveform.dtype) == ((READ[name],), np.float32)
    assert np.isfinite(waveform).all()
    assert probe(bad_files / name).seconds == pytest.approx(READ[name] / SAMPLE_RATE, abs=1 / SAMPLE_RATE)


def test_every_file_of_the_collection_is_tested(bad_files):
    assert {p.name for p in bad_files.iterdir()} - {"README.md"} == {*REFUSED, *READ}


@pytest.mark.parametrize("name", ["empty.wav", "text.wav", "truncated_header.wav", "zero_samples.wav", "x.wav"])
def test_probe_refuses_what_the_header_shows(bad_files, name):
    with pytest.raises(AudioError):
        probe(bad_files / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AudioError):
        decode(tmp_path / "none.wav")


def same(folder):
    return sorted(p for p in folder.iterdir() if p.suffix != ".md")


def test_one_sound_in_every_format(same_files):
    reference = decode(same_files / "f64.wav")
    for file in same(same_files):
        waveform = decode(file)
        assert len(waveform) == len(reference), file.name
        if file.name in CORRELATION:
            assert np.corrcoef(waveform, reference)[0, 1] > CORRELATION[file.name], file.name
            assert np.linalg.norm(waveform) == pytest.approx(np.linalg.norm(reference), rel=0.01), file.name
        else:
            assert np.abs(waveform - reference).max() < LOSSLESS, file.name


def test_bytes_are_read_as_the_file_is(same_files, bad_files):
    for file in [*same(same_files), *(bad_files / name for name in READ)]:
        np.testing.assert_array_equal(decode(file.read_bytes()), decode(file))
        assert probe(file.read_bytes()) == probe(file)
    for file in same(same_files):
        for encoded in (str(file), file.read_bytes()):
            np.testing.assert_array_equal(decode(encoded, 0.1, 0.2), decode(file, 0.1, 0.2))


@pytest.mark.parametrize("start, seconds", [(0.0, 0.5), (0.7, 0.5), (1.24, 0.3), (1.8, 0.5), (0.5, None)])
def test_a_crop_is_a_piece_of_the_whole(same_files, start, seconds):
    for file in same(same_files):
        rate = probe(file).sample_rate
        begin = round(start * SAMPLE_RATE)
        end = None if seconds is None else begin + round(seconds * SAMPLE_RATE)
        piece, crop = decode(file)[begin:end], decode(file, start, seconds)
        assert len(crop) == len(piece), file.name
        difference = np.abs(crop - piece)
        if rate == SAMPLE_RATE:
            assert difference.max() <= SEEK[file.suffix], file.name
        else:
            assert difference.max() < max(RESAMPLED, SEEK[file.suffix]), file.name


@pytest.fixture(scope="module")
def long_mp3(tmp_path_factory):
    train = sorted((DEMO / "data").glob("train-*.parquet"))
    if not train:
        pytest.skip("data/demo is absent")
    clips = pq.read_table(train[0], columns=["audio"]).column("audio").to_pylist()[:60]
    sound = np.concatenate([decode(clip["bytes"]) for clip in clips])
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "MPEG_LAYER_III", format="MP3") as file:
        for start in range(0, len(sound), SAMPLE_RATE):
            file.write(sound[start : start + SAMPLE_RATE])
    return path


def test_crops_of_a_long_mp3_have_no_false_start(long_mp3):
    """An MP3 frame may need bits of frames before it: a decoder that jumps there at once gives up to 0.1 s of noise."""
    whole = decode(long_mp3)
    for start in np.random.default_rng(0).uniform(0, len(whole) / SAMPLE_RATE - 1, 300):
        begin = round(start * SAMPLE_RATE)
        crop = decode(long_mp3, start, 0.25)
        assert np.abs(crop - whole[begin : begin + 4000]).max() < 1e-3, start


@pytest.mark.parametrize(("rate", "compression"), [(48000, 0.9), (16000, 0.5), (8000, 0.5)])
def test_crops_of_an_mp3_of_variable_bit_rate_are_those_of_the_whole(long_mp3, tmp_path, rate, compression):
    """Frames of quiet sound are so small that many of them share the bits that a later one needs."""
    sound = soxr.resample(decode(long_mp3, 0.0, 60.0), SAMPLE_RATE, rate)
    path = tmp_path / "a.mp3"
    quality = {"compression_level": compression, "bitrate_mode": "VARIABLE"}
    with soundfile.SoundFile(path, "w", rate, 2, "MPEG_LAYER_III", format="MP3", **quality) as file:
        file.write(np.stack([sound, sound], axis=1))
    whole, random = decode(path), np.random.default_rng(1)
    for _ in range(15):
        spans = [(float(start), 1.0) for start in np.cumsum(random.uniform(0, 8, 20)) if start < 58]
        for (start, seconds), crop in zip(spans, decode_ranges(path, spans), strict=True):
            piece = whole[round(start * SAMPLE_RATE) :][:SAMPLE_RATE]
            assert np.abs(crop - piece).max() < 1e-5, (start, "with others before")
            assert np.abs(decode(path, start, seconds) - piece).max() < 1e-5, (start, "alone")


def test_workers_keep_what_libmpg123_says_of_such_frames_to_themselves(long_mp3, capfd):
    def crops():
        print("heard", file=sys.stderr, flush=True)
        return [decode(long_mp3, start, 0.25) for start in np.linspace(1, 60, 100)]

    crops()
    assert "part2_3_length" in capfd.readouterr().err
    worker = multiprocessing.get_context("fork").Process(target=crops)
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and capfd.readouterr().err == "heard\n"


def test_a_crop_past_the_end_is_refused_not_invented(same_files):
    with pytest.raises(AudioError, match="no samples"):
        decode(same_files / "s16.wav", 5.0, 1.0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_is_soxr_on_the_whole(tmp_path, write_wav, rate):
    samples = write_wav(tmp_path / "a.wav", 1.3, rate)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav"), soxr.resample(samples, rate, 16000, quality="HQ"))


def test_a_tone_keeps_pitch_and_level_at_any_rate(tmp_path):
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    for rate in (8000, 22050, 44100, 96000):
        soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate, "FLOAT")
        waveform = decode(tmp_path / "tone.wav")
        assert np.abs(waveform - expected)[EDGE:-EDGE].max() < 1e-3, rate


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(tmp_path, write_wav, channels):
    samples = write_wav(tmp_path / "a.wav", 0.5, channels=channels)
    np.testing.assert_allclose(decode(tmp_path / "a.wav"), samples.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("channels", [2, 3])
def test_the_mean_of_channels_is_numpys_bit_by_bit(tmp_path, channels):
    samples = 0.1 * np.random.default_rng(channels).standard_normal((4000, channels)).astype(np.float32)
    for scaled in (samples, samples * np.float32(1e-30)):
        soundfile.write(tmp_path / "a.wav", scaled, 16000, subtype="FLOAT")
        assert decode(tmp_path / "a.wav").tobytes() == scaled.mean(axis=1).tobytes()


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC"])
@pytest.mark.parametrize("channels", [1, 2])
def test_16_bit_samples_are_libsndfiles_bit_by_bit(tmp_path, kind, channels):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (4000, channels), dtype=np.int16)
    samples[:4, 0] = [-(2**15), 2**15 - 1, 0, -1]
    soundfile.write(tmp_path / "a", samples, 16000, "PCM_16", format=kind)
    expected = soundfile.read(tmp_path / "a", dtype="float32", always_2d=True)[0].mean(axis=1)
    assert decode(tmp_path / "a").tobytes() == expected.tobytes()
    assert decode(tmp_path / "a", 0.1, 0.1).tobytes() == expected[1600:3200].tobytes()


def test_sound_over_full_scale_is_kept(tmp_path, write_wav):
    samples = write_wav(tmp_path / "a.wav", peak=20.0)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav"), samples)


def test_a_long_file_is_read_in_blocks_without_a_seam(tmp_path, monkeypatch, write_wav):
    monkeypatch.setattr("src.audio.sound._BLOCK_FRAMES", 1000)
    samples = write_wav(tmp_path / "a.wav", 0.7, channels=2)
    np.testing.assert_allclose(decode(tmp_path / "a.wav"), samples.mean(axis=1), atol=1e-7)
    assert len(decode(tmp_path / "a.wav", 0.1, 0.25)) == 4000


def test_a_message_is_one_line_without_the_name(bad_files):
    for name in REFUSED:
        with pytest.raises(AudioError) as caught:
            decode(bad_files / name)
        assert "\n" not in str(caught.value) and not re.search(re.escape(name), str(caught.value))
