"""Packing that decodes, resamples, encodes and cuts: no sample lost, labels carried, shares of several processes."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from src import pack
from src.audio.decode import decode
from src.data.packing.prepare import Preparation, prepared
from src.data.sources.shards import ShardSource

ROOT = Path(__file__).parents[1]
LAUNCHED = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID")


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def long_16_bit(long_audio) -> np.ndarray:
    """(T,) of real audio as int16, 31.2 s and some samples."""
    return np.rint(np.clip(long_audio.numpy()[: 31 * 16000 + 3217], -1, 1) * 32767).astype(np.int16)


def run(*arguments) -> int:
    return pack.main([*map(str, arguments), "--workers", "1"])


def index_of(folder) -> list[dict]:
    return [row for file in sorted(Path(folder).glob("*.index.parquet")) for row in pq.read_table(file).to_pylist()]


def audio_of(folder) -> list[np.ndarray]:
    source = ShardSource(f"{folder}/*.tar")
    return [source.waveform(i) for i in range(len(source))]


@pytest.mark.parametrize("audio", ["flac", "pcm16"])
@pytest.mark.parametrize("seconds", [10, 7.123, 31.2])
def test_segments_of_a_16_bit_file_are_the_file(long_16_bit, tmp_path, audio, seconds):
    soundfile.write(tmp_path / "long.wav", long_16_bit, 16000)
    assert run(tmp_path / "long.wav", "--out", tmp_path / "o", "--audio", audio, "--segment-seconds", seconds) == 0
    rows, size = index_of(tmp_path / "o"), round(seconds * 16000)
    assert [row["start_seconds"] for row in rows] == [n * size / 16000 for n in range(len(rows))]
    assert {row["parent"] for row in rows} == {"long.wav"} and len(rows) == -(-len(long_16_bit) // size)
    joined = np.concatenate(audio_of(tmp_path / "o"))
    assert np.array_equal(joined * 32768, long_16_bit)


def test_another_rate_and_two_channels_are_what_decoding_gives(long_16_bit, tmp_path, capsys):
    """44.1 kHz stereo to 16 kHz: up to rounding the samples of `decode`, also across cuts."""
    stereo = np.stack([long_16_bit, long_16_bit // 2], 1)
    soundfile.write(tmp_path / "long.flac", stereo, 44100)
    assert run(tmp_path / "long.flac", "--out", tmp_path / "o", "--audio", "flac", "--segment-seconds", 3) == 0
    joined, whole = np.concatenate(audio_of(tmp_path / "o")), decode(tmp_path / "long.flac")
    assert len(joined) == len(whole) and np.abs(joined - whole).max() <= 1.1 / 32768  # rounding, and blocks of soxr
    out = capsys.readouterr().out
    num_bytes = (tmp_path / "long.flac").stat().st_size
    assert "seconds of audio per core second before" in out and f"size: {num_bytes:,} bytes before" in out


def test_opus_is_the_same_each_time_and_keeps_length_and_loudness(long_16_bit, tmp_path):
    soundfile.write(tmp_path / "long.wav", long_16_bit, 16000)
    for name in ("a", "b"):
        assert run(tmp_path / "long.wav", "--out", tmp_path / name, "--audio", "opus", "--segment-seconds", 10) == 0
    assert (tmp_path / "a" / "000000.tar").read_bytes() == (tmp_path / "b" / "000000.tar").read_bytes()
    joined, whole = np.concatenate(audio_of(tmp_path / "a")), long_16_bit / 32768
    assert len(joined) == len(whole)
    assert np.sqrt(np.mean(joined**2)) == pytest.approx(np.sqrt(np.mean(whole**2)), rel=0.05)
    assert np.corrcoef(joined, whole)[0, 1] > 0.95


def test_what_exceeds_full_scale_is_clipped_there_and_said(tmp_path, capsys):
    wave = (1.5 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    soundfile.write(tmp_path / "loud.wav", wave, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "unscaled.wav", wave * 30000, 16000, subtype="FLOAT")
    assert run(tmp_path, "--out", tmp_path / "o", "--audio", "flac") == 1
    (found,) = audio_of(tmp_path / "o")
    np.testing.assert_allclose(found, np.clip(wave, -1, 32767 / 32768), atol=1 / 32768)
    error = capsys.readouterr().err
    assert "1 file exceeds full scale" in error and "loud.wav (1.500)" in error
    assert "unscaled.wav: samples of up to" in error


def test_a_file_that_breaks_off_leaves_no_segment_behind(long_16_bit, tmp_path, capsys):
    soundfile.write(tmp_path / "in.flac", long_16_bit, 16000)
    data = (tmp_path / "in.flac").read_bytes()
    (tmp_path / "set").mkdir()
    for name, content in (("a", data), ("b", data[: int(0.9 * len(data))]), ("c", data)):
        (tmp_path / "set" / f"{name}.flac").write_bytes(content)
    assert run(tmp_path / "set", "--out", tmp_path / "o", "--audio", "pcm16", "--segment-seconds", 5) == 1
    names = [row["name"] for row in index_of(tmp_path / "o")]
    assert names == [f"{name}-{number:06}.wav" for name in "ac" for number in range(7)]
    with tarfile.open(tmp_path / "o" / "000000.tar") as tar:
        assert [name for name in tar.getnames() if name.endswith(".wav")] == names
    assert np.array_equal(np.concatenate(audio_of(tmp_path / "o"))[: len(long_16_bit)] * 32768, long_16_bit)
    assert "b.flac" in (tmp_path / "o" / "skipped.csv").read_text()


def test_labels_go_with_segments_and_events_are_cut(long_16_bit, tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / "set" / name, long_16_bit[: 25 * 16000], 16000)
    (tmp_path / "set" / "labels.csv").write_text(
        "filename,onset,offset,label\na.wav,8,12.5,dog\na.wav,1,2,cat\nb.wav,0,25,dog\n"
    )
    assert run(tmp_path / "set", "--out", tmp_path / "o", "--audio", "flac", "--segment-seconds", 10) == 0
    source = ShardSource(f"{tmp_path}/o/*.tar")
    found = [source.annotation(i) for i in range(6)]
    assert [each and set(each.labels) for each in found] == [{"dog", "cat"}, {"dog"}, None, {"dog"}, {"dog"}, {"dog"}]
    assert sorted(found[0].events) == [(1.0, 2.0, "cat"), (8.0, 10.0, "dog")]
    assert found[1].events == ((0.0, 2.5, "dog"),) and found[5].events == ((0.0, 5.0, "dog"),)
    assert [each.group for each in found if each] == ["a.wav"] * 2 + ["b.wav"] * 3
    assert [source.segment(i) for i in (1, 5)] == [("a.wav", 10.0), ("b.wav", 20.0)]
    with tarfile.open(tmp_path / "o" / "000000.tar") as tar:
        assert json.load(tar.extractfile("a-000001.json"))["start_seconds"] == 10.0


def test_memory_does_not_grow_with_the_length_of_a_file(long_16_bit, tmp_path):
    """Segments of half an hour of audio are made from blocks: the samples of all of it never exist together."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16000, 1) as file:
        for _ in range(58):
            file.write(long_16_bit)
    import tracemalloc

    tracemalloc.start()
    seconds = sum(each.seconds for each in prepared(tmp_path / "long.flac", Preparation("flac", 16000, 10.0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == pytest.approx(58 * len(long_16_bit) / 16000) and peak < 0.25 * seconds * 16000 * 4


@pytest.fixture(scope="module")
def many(tmp_path_factory, clips) -> Path:
    """24 files in two class folders, a broken one among them."""
    folder = tmp_path_factory.mktemp("many")
    for number, clip in enumerate(clips[:24]):
        file = folder / "ab"[number % 2] / f"{number:02}.wav"
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, clip.numpy(), 16000)
    (folder / "a" / "broken.wav").write_bytes(b"RIFF")
    return folder


OPTIONS = ["--audio", "flac", "--segment-seconds", "1", "--shard-megabytes", "0.1"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".lock"}


def test_any_number_of_processes_writes_what_one_writes(many, tmp_path, monkeypatch, capsys):
    """Four processes of which two were lost, then three: by --part, by torchrun's and by srun's environment."""
    assert run(many, "--out", tmp_path / "one", *OPTIONS) == 1
    expected = files_of(tmp_path / "one")
    assert len(expected) > 10
    out = ["--out", tmp_path / "shared", *OPTIONS]
    assert run(many, *out, "--part", "2/4") == 0
    assert "part 2/4" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run(many, *out) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").glob("*.tar")}
    assert 0 < len(before) < len([name for name in expected if name.endswith(".tar")])
    assert run(many, *out, "--part", "1/3") == 0
    monkeypatch.delenv("RANK")
    statuses = []
    for rank in "12":
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_NTASKS", "3")
        statuses.append(run(many, *out))
    assert statuses == [0, 1] and files_of(tmp_path / "shared") == expected
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_two_processes_of_torchrun(many, tmp_path, form):
    options = [*OPTIONS, "--format", form, "--workers", "1"]
    assert run(many, "--out", tmp_path / "one", *options) == 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "src.pack", str(many), "--out", str(tmp_path / "two"), *options]
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # a file is broken, which the process says that finishes last
    assert done.stdout.count("decoding: ") == 2  # each has packed a share
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_urls_in_and_out(many, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [path for path in many.rglob("*.wav") if path.name != "broken.wav"]
    for file in files:
        with fsspec.open(f"memory://corpus/{file.relative_to(many)}", "wb") as opened:
            opened.write(file.read_bytes())
    assert run(*(path for path in many.iterdir()), "--out", tmp_path / "here", *OPTIONS) == 1
    for _ in range(2):  # a second time, everything is finished
        assert run("memory://corpus", "--out", "memory://packed", *OPTIONS) == 0
    source = ShardSource("memory://packed/*.tar")
    names = {f"{file.parent.name}/{file.stem}.wav" for file in files}
    assert {source.segment(i)[0] for i in range(len(source))} == names
    assert list(source.class_names) == ["a", "b"]
    samples = sum(soundfile.info(file).frames for file in files)
    assert sum(len(source.waveform(i)) for i in range(len(source))) == samples
    assert run(many / "b", "--out", f"file://{tmp_path}/local") == 0
    assert (tmp_path / "local" / "000000.tar.index.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sample-rate", "16000"], "--sample-rate needs --audio"),
        (["--segment-seconds", "10"], "--segment-seconds needs --audio"),
        (["--audio", "opus", "--sample-rate", "44100"], "Opus has 8000"),
        (["--audio", "flac", "--sample-rate", "0"], "--sample-rate 0 is out of range"),
        (["--audio", "flac", "--segment-seconds", "nan"], "--segment-seconds nan is out of range"),
        (["--audio", "flac", "--segment-seconds", "0"], "--segment-seconds 0.0 is out of range"),
        (["--index", "--audio", "flac"], "--audio has no effect with --index"),
        (["--part", "0/4"], "--part 0/4 is not a part"),
        (["--part", "5/4"], "--part 5/4 is not a part"),
        (["--part", "3"], "--part 3 is not a part"),
    ],
)
def test_options_without_sense_are_refused(many, tmp_path, capsys, arguments, words):
    assert run(many, "--out", tmp_path / "o", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_other_options_do_not_mix_in_one_folder(many, tmp_path, capsys):
    assert run(many / "b", "--out", tmp_path / "o", "--audio", "flac") == 0
    assert run(many / "b", "--out", tmp_path / "o") == 2
    assert run(many / "b", "--out", tmp_path / "o", "--audio", "flac", "--sample-rate", "8000") == 2
    assert "packed from other files or with other options" in capsys.readouterr().err
