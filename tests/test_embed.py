"""Embeddings of collections through the command line: equal to the encoder's, restartable, broken files listed."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from benchmarks.parity import randomize
from src import embed as door
from src.audio.decode import AudioError, decode
from src.embed import embed
from src.encoders.load import load_encoder
from src.encoders.save import save_encoder
from src.evaluation.embedding_file import EmbeddingFile
from src.evaluation.embeddings import fingerprint
from src.models import create_mae
from src.models.vit import AudioViT

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "data" / "demo"
TOLERANCE = 2e-5  # of batches beside single clips, values up to 10


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    save_encoder(randomize(create_mae("tiny"), 0).encoder, folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(encoder_folder):
    return load_encoder(encoder_folder)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """40 clips in two class folders, one of 75 s among them, three broken files."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = pq.read_table(next((DEMO / "data").glob("test-*.parquet"))).column("audio").to_pylist()[:39]
    for number, row in enumerate(rows):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(exist_ok=True)
        (place / f"{number:03}.opus").write_bytes(row["bytes"])
    joined = np.concatenate([decode(row["bytes"]) for row in rows])
    soundfile.write(folder / "a" / "long.wav", np.tile(joined, 4)[: 75 * 16000], 16000, subtype="FLOAT")
    (folder / "a" / "empty.wav").write_bytes(b"")
    (folder / "b" / "noise.flac").write_bytes(bytes(range(256)) * 20)
    soundfile.write(folder / "b" / "cut.flac", joined[:32000], 16000)  # its header is whole
    cut = (folder / "b" / "cut.flac").read_bytes()
    (folder / "b" / "cut.flac").write_bytes(cut[: len(cut) // 2])
    return folder


def run(*arguments) -> int:
    return door.main([str(argument) for argument in arguments])


def read(file: Path) -> dict:
    return pq.read_table(file).to_pydict()


def test_rows_are_the_clips_alone_and_broken_files_are_listed(sounds, encoder, encoder_folder, tmp_path, capsys):
    assert run(sounds, "--encoder", encoder_folder, "--out", tmp_path / "o.parquet", "--batch-seconds", 5) == 1
    table = read(tmp_path / "o.parquet")
    assert len(table["path"]) == 40 == len(set(table["path"])) and table["path"] == sorted(table["path"])
    assert all(label == Path(path).parent.name for label, path in zip(table["label"], table["path"], strict=True))
    for path, seconds, embedding in zip(table["path"], table["seconds"], table["embedding"], strict=True):
        waveform = torch.from_numpy(decode(path))
        assert seconds == pytest.approx(len(waveform) / 16000)
        with torch.no_grad():
            alone = encoder.embed(waveform[None])[0].numpy()
        assert np.abs(np.array(embedding) - alone).max() <= TOLERANCE, path
    with open(tmp_path / "o.parquet.skipped.csv", newline="") as file:
        skipped = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in skipped} == {"empty.wav", "noise.flac", "cut.flac"}
    assert "40 clips" in capsys.readouterr().out and not (tmp_path / "o.parquet.partial").exists()
    settings = json.loads(pq.read_schema(tmp_path / "o.parquet").metadata[b"embedding"])
    assert settings["encoder"] == encoder_folder and settings["layers"] == [None] and settings["pooling"] == "mean"


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_std", "mean_max"])
def test_layers_and_pooling(sounds, encoder, encoder_folder, tmp_path, pooling):
    files = [sounds / "a/001.opus", sounds / "a/long.wav"]
    options = ["--layers", "0,5,last", "--pooling", pooling, "--out", tmp_path / "o.npz"]
    assert run(*files, "--encoder", encoder_folder, *options) == 0
    with np.load(tmp_path / "o.npz") as table:
        for path, embedding in zip(table["path"], table["embedding"], strict=True):
            with torch.no_grad():
                alone = encoder.embed(torch.from_numpy(decode(str(path)))[None], None, [0, 5, None], pooling)[0].numpy()
            assert np.abs(embedding - alone).max() <= 1e-3 * np.abs(alone).max()
            np.testing.assert_allclose(
                embed(str(path), encoder, layers=[0, 5, None], pooling=pooling), alone, atol=2e-4
            )


def test_frames_carry_their_times(sounds, encoder, encoder_folder, tmp_path):
    assert run(sounds / "a", "--level", "frame", "--encoder", encoder_folder, "--out", tmp_path / "o.parquet") == 1
    table = read(tmp_path / "o.parquet")
    paths = np.array(table["path"])
    for path in (str(sounds / "a/003.opus"), str(sounds / "a/long.wav")):
        chosen = np.flatnonzero(paths == path)
        with torch.no_grad():
            tokens = encoder(torch.from_numpy(decode(path))[None])[0].numpy()
        found = np.array([table["embedding"][i] for i in chosen])
        assert found.shape == tokens.shape and np.abs(found - tokens).max() <= TOLERANCE
        times = np.array([table["time"][i] for i in chosen])
        np.testing.assert_allclose(times, 0.015 + 0.04 * np.arange(len(times)), atol=1e-4)
        np.testing.assert_allclose(embed(path, encoder, level="frame"), tokens, atol=TOLERANCE)


def test_each_kind_of_input(encoder_folder, encoder, tmp_path):
    """A dataset, its parquet file, shards; together in one call, nothing twice."""
    parquet = next((DEMO / "data").glob("test-*.parquet"))
    rows = pq.read_table(parquet).column("audio").to_pylist()[:5]
    with tarfile.open(tmp_path / "000.tar", "w") as tar:
        for number, row in enumerate(rows):
            member = tarfile.TarInfo(f"{number}.opus")
            member.size = len(row["bytes"])
            tar.addfile(member, io.BytesIO(row["bytes"]))
    out = ["--encoder", encoder_folder, "--out", tmp_path / "o.parquet"]
    assert run(tmp_path / "000.tar", DEMO, parquet, "--split", "test", "--label-column", "label", *out) == 0
    table = read(tmp_path / "o.parquet")
    assert len(table["path"]) == 5 + 212 + 212 == len(set(table["path"]))
    assert table["path"][0] == f"{tmp_path}/000.tar/0.opus" and table["label"][0] is None
    assert table["label"][5] == table["label"][5 + 212] and table["label"][5]
    vectors = np.array(table["embedding"])
    assert np.abs(vectors[:5] - vectors[5:10]).max() <= TOLERANCE


def test_killed_and_started_again_gives_each_row_once(encoder_folder, tmp_path):
    """1,000 files, 3 of them broken, SIGKILL half-way: 997 rows, equal to those of a run in one go."""
    folder = tmp_path / "many"
    folder.mkdir()
    tone = np.sin(np.arange(4000) / 5).astype(np.float32)
    for number in range(1000):
        soundfile.write(folder / f"{number:04}.wav", tone * (number + 1) / 1000, 16000)
    for number in (0, 500, 999):
        (folder / f"{number:04}.wav").write_bytes(b"RIFF")
    out = tmp_path / "o.parquet"
    command = [sys.executable, "-m", "src.embed", str(folder), "--encoder", encoder_folder, "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / "o.parquet.partial"
    deadline = time.monotonic() + 120
    while not list(partial.glob("0*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not out.exists()
    assert run(folder, "--encoder", encoder_folder, "--out", out) == 1
    resumed = read(out)
    assert len(resumed["path"]) == 997 == len(set(resumed["path"])) and resumed["path"] == sorted(resumed["path"])
    with open(f"{out}.skipped.csv", newline="") as file:
        assert [Path(row["path"]).stem for row in csv.DictReader(file)] == ["0000", "0500", "0999"]
    assert run(folder, "--encoder", encoder_folder, "--out", tmp_path / "whole.parquet") == 1
    whole = read(tmp_path / "whole.parquet")
    assert whole["path"] == resumed["path"]
    assert np.abs(np.array(whole["embedding"]) - np.array(resumed["embedding"])).max() <= TOLERANCE


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two folders of two clips each, and a dataset with two splits and two label columns."""
    folder = tmp_path_factory.mktemp("few")
    tone = io.BytesIO()
    soundfile.write(tone, np.sin(np.arange(4000) / 5).astype(np.float32), 16000, format="WAV")
    for name in ("a/1.wav", "a/2.wav", "b/3.wav", "b/4.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(tone.getvalue())
    (folder / "set").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        audio = [{"bytes": tone.getvalue(), "path": f"{i}.wav"} for i in range(count)]
        columns = {"animal": ["dog"] * count, "place": ["park"] * count}
        pq.write_table(pa.table({"audio": audio, **columns}), folder / "set" / f"{split}.parquet")
    return folder


def stopped(monkeypatch, *arguments) -> None:
    """An embed that is interrupted before its parts are joined."""
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingFile, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments) == 130


COLUMN = ["--label-column", "animal"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["b"], "inputs: ['{few}/a'] before, ['{few}/b'] now"),
        (["a", "b"], "inputs: ['{few}/a'] before, ['{few}/a', '{few}/b'] now"),
        (["a", "--split", "test"], "split: train before, test now"),
        (["a", "--label-column", "place"], "label column: None before, place now"),
        (["a", "--layers", "6"], "layers: [None] before, [6] now"),
        (["a", "--pooling", "max"], "pooling: mean before, max now"),
        (["a", "--level", "frame"], "level: clip before, frame now"),
        (["a", "--encoder", "other"], "weights: "),
    ],
)
def test_a_resumed_embed_refuses_other_inputs_and_settings(
    few, encoder_folder, tmp_path, monkeypatch, capsys, change, words
):
    out = ["--out", tmp_path / "o.parquet"]
    stopped(monkeypatch, few / "a", "--encoder", encoder_folder, *out)
    parts = {file: file.read_bytes() for file in (tmp_path / "o.parquet.partial").iterdir()}
    if "other" in change:
        save_encoder(randomize(create_mae("tiny"), 1).encoder, tmp_path / "other")
    known = {"a": few / "a", "b": few / "b", "other": tmp_path / "other"}
    assert run("--encoder", encoder_folder, *out, *(known.get(each, each) for each in change)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "was started with other settings" in message and words.replace("{few}", str(few)) in message
    assert {file: file.read_bytes() for file in (tmp_path / "o.parquet.partial").iterdir()} == parts
    assert run(few / "a", "--encoder", encoder_folder, *out) == 0
    assert [Path(path).name for path in read(tmp_path / "o.parquet")["path"]] == ["1.wav", "2.wav"]


def test_the_same_relative_path_in_another_folder_is_another_input(few, encoder_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(few)
    stopped(monkeypatch, "a", "--encoder", encoder_folder, "--out", tmp_path / "o.parquet")
    monkeypatch.chdir(few / "set")
    assert run("../a", "--encoder", encoder_folder, "--out", tmp_path / "o.parquet") == 2
    assert f"in folder: {few} before" in capsys.readouterr().err


def test_the_key_of_a_row_has_its_split(few, encoder_folder, tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        out = tmp_path / f"{split}.parquet"
        assert run(few / "set", "--split", split, *COLUMN, "--encoder", encoder_folder, "--out", out) == 0
        table = read(out)
        assert table["path"] == [f"{few}/set:{split}#{i}:{i}.wav" for i in range(count)] and set(table["label"]) == {
            "dog"
        }


def test_two_writers_of_one_output(few, encoder_folder, tmp_path, capsys):
    out = tmp_path / "o.parquet"
    with contextlib.closing(EmbeddingFile(out, {"level": "clip"})):
        assert run(few / "a", "--encoder", encoder_folder, "--out", out) == 2
        assert "is being written by another process" in capsys.readouterr().err


def test_a_folder_of_something_else_is_never_deleted(few, encoder_folder, tmp_path, capsys):
    mine = tmp_path / "o.parquet.partial" / "precious.tmp"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run(few / "a", "--encoder", encoder_folder, "--out", tmp_path / "o.parquet") == 2
    assert "holds other files (precious.tmp)" in capsys.readouterr().err and mine.read_text() == "mine"


def test_the_reasons_are_listed_when_nothing_can_be_read(encoder_folder, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.wav").write_bytes(b"RIFF")
    assert run(tmp_path / "bad", "--encoder", encoder_folder, "--out", tmp_path / "o.parquet") == 2
    rows = list(csv.DictReader((tmp_path / "o.parquet.skipped.csv").read_text().splitlines()))
    assert [row["path"] for row in rows] == [f"{tmp_path}/bad/1.wav"] and rows[0]["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {"bad", "o.parquet.skipped.csv"}
    assert "no clip could be embedded" in capsys.readouterr().err


def test_finished_output_is_kept(sounds, encoder_folder, tmp_path, capsys):
    (tmp_path / "done.parquet").write_bytes(b"here")
    assert run(sounds, "--encoder", encoder_folder, "--out", tmp_path / "done.parquet") == 2
    assert "already exists" in capsys.readouterr().err


def test_the_fingerprint_sees_every_weight_and_the_front_end():
    encoder = AudioViT(24, 2, 3)
    before = fingerprint(encoder)
    for name, value in encoder.state_dict().items():
        if value.is_floating_point():
            last = value.view(-1)[-1].clone()
            value.view(-1)[-1] = last + 1
            assert fingerprint(encoder) != before, name
            value.view(-1)[-1] = last
    assert fingerprint(encoder) == before
    encoder.log_mel.floor_db = 80.0
    assert fingerprint(encoder) != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-file.wav"], "there is no file or folder no-such-file.wav"),
        (["README.md"], "has no audio suffix"),
        (["tests"], "holds no audio files"),
        (["data/demo", "--split", "tset"], "Unknown split"),
        (["data/demo", "--layers", "13"], "--layers 13"),
        (["data/demo", "--layers", "first"], "--layers first"),
        (["data/demo", "--layers", "²"], "--layers ²"),
        (["data/demo", "--batch-seconds", "nan"], "--batch-seconds nan is out of range"),
        (["data/demo", "--workers", "0"], "--workers 0 is out of range"),
        (["my/sounds"], "there is no file or folder my/sounds"),
        (["data/demo", "--out", "o.csv"], "must end in .parquet or .npz"),
        (["data/demo", "--encoder", "no-such.pt"], "there is no checkpoint no-such.pt"),
        (["data/demo", "--device", "cuda"], "torch finds no GPU"),
    ],
)
def test_mistakes_end_in_one_sentence(encoder_folder, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(ROOT)
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    defaults = ["--encoder", encoder_folder, "--out", str(tmp_path / "o.parquet")]
    assert run(*defaults, *arguments) == 2
    message = capsys.readouterr().err
    assert words in message and message.strip().count("\n") == 0, message
    assert not list(tmp_path.iterdir())


def test_an_array_with_its_rate_is_the_file(sounds, encoder):
    """Mono or with channels, at 16 kHz or another rate."""
    file = sounds / "a/long.wav"
    samples, rate = soundfile.read(file, dtype="float32")
    expected = embed(file, encoder)
    assert np.array_equal(embed(samples, encoder, rate), expected)
    np.testing.assert_allclose(embed(np.stack([samples, samples]), encoder, rate), expected, atol=TOLERANCE)
    assert embed(samples[:44100], encoder, 44100).shape == (192,)
    with pytest.raises(ValueError, match="sample_rate"):
        embed(samples, encoder)
    with pytest.raises(AudioError, match="not finite"):
        embed(np.array([0.1, np.nan], np.float32), encoder, 16000)
    with pytest.raises(AudioError, match="shape"):
        embed(np.zeros(0, np.float32), encoder, 16000)
