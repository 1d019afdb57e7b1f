"""A folder of parts: written by any number of processes, each row once, opened as one table and searched."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from benchmarks.parity import randomize
from src import embed, pack, search
from src.data.sources import index
from src.encoders.save import save_encoder
from src.evaluation import embedding_folder, embedding_index
from src.models import create_mae

ROOT = Path(__file__).parents[1]
TOLERANCE = 2e-5  # of batches of other clips, values up to 10


@pytest.fixture(scope="module")
def place(tmp_path_factory, two_blocks, clips):
    """25 clips in two class folders, three of them broken or of a format that nobody reads; an encoder; one file."""
    folder = tmp_path_factory.mktemp("parts")
    for number, clip in enumerate(clips[:25]):
        file = folder / "sounds" / "ab"[number % 2] / f"{number:02}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, clip.numpy(), 16000)
    for name in ("a/00.wav", "b/01.wav", "b/13.wav"):
        (folder / "sounds" / name).write_bytes(b"RIFF")
    save_encoder(randomize(create_mae("tiny"), 0).encoder, folder / "encoder")
    assert run(folder, "--out", folder / "whole.parquet") == 1
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embedding_folder, "_CLIPS", 2)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def run(place, *arguments, inputs=None) -> int:
    inputs = [place / "sounds"] if inputs is None else inputs
    return embed.main([*map(str, inputs), "--encoder", str(place / "encoder"), *map(str, arguments)])


def same_rows(folder, file) -> None:
    table, expected = pq.read_table(folder).to_pydict(), pq.read_table(file).to_pydict()
    assert sorted(table["path"]) == sorted(expected["path"]) and set(table) == set(expected)
    order, expected_order = np.argsort(table["path"], kind="stable"), np.argsort(expected["path"], kind="stable")
    for name in table:
        ours, theirs = np.array(table[name])[order], np.array(expected[name])[expected_order]
        if name in ("embedding", "time"):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        else:
            assert ours.tolist() == theirs.tolist(), name


def test_each_row_once_after_a_restart_on_another_number_of_processes(place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(place, "--out", out, "--part", "2/4") == 0  # the others were lost
    assert "part 2/4" in capsys.readouterr().out
    assert search.main([str(place / "sounds/a/02.wav"), "--index", str(out)]) == 2
    assert "of 13 parts; run the same python -m src.embed again" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    statuses = []
    for rank in "201":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "3")
        statuses.append(run(place, "--out", out))
    assert statuses == [0, 0, 1] and len(list(out.iterdir())) == 13
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())
    same_rows(out, place / "whole.parquet")
    with open(f"{out}.skipped.csv", newline="") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == {"00.wav", "01.wav", "13.wav"}


TWO_CLIPS_A_PART = "from src import embed; from src.evaluation import embedding_folder as f; f._CLIPS = 2; "


@pytest.mark.slow
def test_processes_at_once(place, tmp_path):
    out = tmp_path / "out"
    arguments = [str(place / "sounds"), "--encoder", str(place / "encoder"), "--out", str(out)]
    command = [sys.executable, "-c", f"{TWO_CLIPS_A_PART} raise SystemExit(embed.main({arguments}))"]
    environments = [{**os.environ, "SLURM_PROCID": rank, "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1"} for rank in "01"]
    processes = [subprocess.Popen(command, cwd=ROOT, env=each) for each in environments]
    assert sorted(process.wait() for process in processes) in ([0, 1], [1, 1])
    assert len(list(out.iterdir())) == 13
    same_rows(out, place / "whole.parquet")


def test_everybody_opens_the_folder_as_one_table(place, tmp_path):
    out = tmp_path / "out"
    assert run(place, "--out", out) == 1
    expected = pq.read_table(place / "whole.parquet")
    frame = pd.read_parquet(out)
    assert len(frame) == 22 and len(frame.embedding[0]) == expected.schema.field("embedding").type.list_size
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["path"]) == sorted(expected.column("path").to_pylist())
    files, folder = (
        embedding_index.neighbours(np.array(frame.embedding[3]), each, 5) for each in (place / "whole.parquet", out)
    )
    assert [each.path for each in folder] == [each.path for each in files] and folder[0].path == frame.path[3]
    assert search.main([frame.path[3], "--index", str(out)]) == 0


@pytest.mark.parametrize("options", [["--level", "frame"], ["--pooling", "mean_std", "--layers", "0,last"]])
def test_other_settings_and_a_part_that_nothing_can_be_read_of(place, tmp_path, options):
    """The first part has two broken files: no rows, but the columns of the others."""
    sounds = [place / "sounds" / name for name in ("a/00.wav", "b/01.wav", "a/02.wav", "b/03.wav")]
    assert run(place, "--out", tmp_path / "out", *options, inputs=sounds) == 1
    assert run(place, "--out", tmp_path / "whole.parquet", *options, inputs=sounds) == 1
    same_rows(tmp_path / "out", tmp_path / "whole.parquet")
    first = pq.read_table(tmp_path / "out" / "part-00000-of-00002.parquet")
    assert first.num_rows == 0 and first.schema == pq.read_schema(tmp_path / "out" / "part-00001-of-00002.parquet")


def test_other_inputs_and_settings_are_refused(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(place, "--out", out, inputs=[place / "sounds" / "b"]) == 1
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(place, "--out", out) == 2
    assert run(place, "--out", out, "--pooling", "max", inputs=[place / "sounds" / "b"]) == 2
    soundfile.write(place / "sounds" / "b" / "new.wav", np.ones(1600) / 8, 16000)
    assert run(place, "--out", out, inputs=[place / "sounds" / "b"]) == 2
    (place / "sounds" / "b" / "new.wav").unlink()
    assert run(place, "--out", tmp_path / "one.parquet", "--part", "1/2") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "inputs: " in errors[0] and "pooling: mean before, max now" in errors[1]
    assert "files were added, removed or changed" in errors[2] and "write --out FOLDER" in errors[3]
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / "mine.parquet").write_bytes(b"x")
    assert run(place, "--out", out, inputs=[place / "sounds" / "b"]) == 2
    assert "holds other files (mine.parquet)" in capsys.readouterr().err


def test_a_clip_of_two_inputs_has_one_row(place, tmp_path):
    inputs = [place / "sounds" / "a" / "02.wav", place / "sounds" / "a", place / "sounds"]
    assert run(place, "--out", tmp_path / "out", inputs=inputs) == 1
    found, expected = pq.read_table(tmp_path / "out"), pq.read_table(place / "whole.parquet")
    assert sorted(found.column("path").to_pylist()) == sorted(expected.column("path").to_pylist())
    with open(tmp_path / "out.skipped.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


def test_a_url_and_the_segments_of_a_packed_set(place, tmp_path, monkeypatch):
    """Rows are joined to the clips that were packed by parent and start_seconds."""
    monkeypatch.chdir(tmp_path)
    options = ["--audio", "flac", "--segment-seconds", "1", "--workers", "1"]
    assert pack.main([str(place / "sounds"), "--out", "shards", *options]) == 1
    assert run(place, "--out", "memory://embeddings", inputs=["shards/*.tar"]) == 0
    assert run(place, "--out", "one.npz", inputs=["shards/*.tar"]) == 0
    rows = {}
    for file in embedding_index.index_files("memory://embeddings"):
        with embedding_index._open(file) as opened:
            for row in opened.read().to_pylist():
                rows[row["parent"], row["start_seconds"]] = row["seconds"]
    for path in (place / "sounds").rglob("*.wav"):
        if path.stat().st_size > 4:
            parent, seconds = path.relative_to(place / "sounds").as_posix(), soundfile.info(path).duration
            assert sum(length for (name, _), length in rows.items() if name == parent) == pytest.approx(seconds)
    with np.load("one.npz") as table:
        assert set(zip(table["parent"].tolist(), table["start_seconds"].tolist(), strict=True)) == set(rows)
    assert run(place, "--out", "memory://embeddings", inputs=["shards/*.tar"]) == 0  # everything is finished
    assert search.main([str(place / "sounds/a/02.wav"), "--index", "memory://embeddings"]) == 0


def test_a_process_reads_the_headers_of_its_share_alone(place, tmp_path, monkeypatch):
    read = []
    probe = index.probe
    monkeypatch.setattr(index, "probe", lambda file: (read.append(file), probe(file))[1])
    assert run(place, "--out", tmp_path / "out", "--part", "4/13") == 0
    assert len(read) == 2
