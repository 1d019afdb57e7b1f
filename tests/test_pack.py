"""Packing into shards: what is in them, what is left out, what a restart does, what a user is told."""

import contextlib
import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from src import pack
from src.atomic import FolderLock
from src.audio.decode import decode
from src.data.packing import pack as packing
from src.data.sources.shards import ShardSource

SHARED = Path(__file__).parents[2] / "shared" / "audio"
DEMO = Path(__file__).parents[1] / "data" / "demo" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """40 Opus files of the demo, in class folders, one of them damaged beyond its header."""
    files = sorted(DEMO.glob("test-*.parquet"))
    if not files:
        pytest.skip("data/demo is absent")
    root = tmp_path_factory.mktemp("demo")
    for number, row in enumerate(pq.read_table(files[0]).slice(0, 40).to_pylist()):
        file = root / f"class {row['label'] % 3}" / f"{number:03}.take.opus"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(row["audio"]["bytes"])
    (root / "class 0" / "text.wav").write_text("no sound")
    return root


def run(*arguments) -> int:
    return pack.main([*map(str, arguments), "--workers", "1"])


def index_of(shard: Path) -> list[dict]:
    return pq.read_table(f"{shard}.index.parquet").to_pylist()


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_writers_of_one_folder_and_two_cases_of_a_suffix(tmp_path, capsys, write_wav):
    write_wav(tmp_path / "a" / "x.WAV")
    write_wav(tmp_path / "a" / "x.wav", seed=1)
    words = [str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--workers", "1"]
    with contextlib.closing(FolderLock(tmp_path / "out")):
        assert pack.main(words) == 2
    assert "another process is packing into" in capsys.readouterr().err
    assert pack.main(words) == 0
    source = ShardSource(str(tmp_path / "out" / "*.tar"))
    assert {source.name(i) for i in range(len(source))} == {"000000.tar/x.WAV", "000000.tar/x-1.wav"}


def test_every_clip_is_stored_as_it_is_and_the_index_says_what_it_is(demo, tmp_path, capsys):
    out = tmp_path / "shards"
    assert run(demo, "--out", out, "--shard-megabytes", 0.1) == 1
    shards = sorted(out.glob("*.tar"))
    assert len(shards) > 2 and all(shard.stat().st_size <= 0.1e6 + 10240 for shard in shards)  # tars end in zeros
    found = {}
    for shard in shards:
        with open(shard, "rb") as file, tarfile.open(shard) as tar:
            for row in index_of(shard):
                file.seek(row["offset"])
                data = file.read(row["size"])
                assert data == tar.extractfile(row["name"]).read()
                assert json.load(tar.extractfile(row["name"].replace(".opus", ".json"))) == {"label": row["label"]}
                assert row["checksum"] == hashlib.md5(data).hexdigest()
                assert row["seconds"] == pytest.approx(len(decode(data)) / 16000, abs=1e-4)
                assert row["sample_rate"] == 16000 and row["channels"] == 1
                found[row["name"]] = (data, row["label"])
    expected = {
        f"{p.parent.name}/{p.name.replace('.take', '_take')}": (p.read_bytes(), p.parent.name)
        for p in demo.rglob("*.opus")
    }
    assert found == expected and len(found) == 40
    assert rows(out) == [["path", "reason"], [str(demo / "class 0" / "text.wav"), rows(out)[1][1]]]
    hours = sum(row["seconds"] for shard in shards for row in index_of(shard)) / 3600
    num_bytes = sum(len(data) for data, _ in found.values())
    assert (
        f"40 samples, {hours:.2f} hours, {num_bytes:,} bytes of audio, {len(shards)} shards" in capsys.readouterr().out
    )


def test_the_source_reads_what_was_packed_without_the_headers(demo, tmp_path, monkeypatch):
    run(demo, "--out", tmp_path / "shards", "--shard-megabytes", 0.1)
    monkeypatch.setattr("src.data.sources.index.probe", None)
    source = ShardSource(str(tmp_path / "shards" / "*.tar"))
    assert len(source) == 40 and not source.bad
    files = {p.name.replace(".take", "_take"): p.read_bytes() for p in demo.rglob("*.opus")}
    for number in range(40):
        assert source.read(number) == files[Path(source.name(number)).name]


def test_the_same_files_give_the_same_shards_whatever_the_number_of_workers(demo, tmp_path):
    run(demo, "--out", tmp_path / "one", "--shard-megabytes", 0.1)
    assert pack.main([str(demo), "--out", str(tmp_path / "two"), "--shard-megabytes", "0.1", "--workers", "2"]) == 1
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not(demo, tmp_path, monkeypatch):
    out, whole = tmp_path / "cut", tmp_path / "whole"
    run(demo, "--out", whole, "--shard-megabytes", 0.1)
    read, count = packing._read, iter(range(100))

    def interrupted(clip, whole):
        if next(count) == 30:
            raise KeyboardInterrupt
        return read(clip, whole)

    monkeypatch.setattr(packing, "_read", interrupted)
    assert run(demo, "--out", out, "--shard-megabytes", 0.1) == 130
    monkeypatch.undo()
    done = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.tar")}
    assert done and len(ShardSource(str(out / "*.tar"))) > 5  # finished shards can be used
    assert run(demo, "--out", out, "--shard-megabytes", 0.1) == 1
    assert files_of(out) == files_of(whole)
    assert done.items() <= {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.tar")}.items()


def test_an_index_without_its_shard_is_made_anew(demo, tmp_path):
    out = tmp_path / "shards"
    run(demo, "--out", out, "--shard-megabytes", 0.1)
    before = files_of(out)
    (out / "000001.tar").unlink()
    half = out / ".000001.tar.x.partial"  # of a run that was killed
    half.write_bytes(b"half")
    run(demo, "--out", out, "--shard-megabytes", 0.1)
    half.unlink()
    assert files_of(out) == before


def test_shards_of_other_files_are_not_overwritten(demo, tmp_path, capsys):
    out = tmp_path / "shards"
    run(demo, "--out", out)
    before = files_of(out)
    assert run(demo / "class 1", "--out", out) == 2
    assert run(demo, "--out", out, "--shard-megabytes", 0.05) == 2
    (out / "mine.tar").write_bytes(b"x")
    assert run(demo, "--out", out) == 2
    for line in capsys.readouterr().err.splitlines():
        assert "shards" in line or line.startswith("skipped") or "could not be read" in line
    (out / "mine.tar").unlink()
    assert files_of(out) == before


def write_noise(file: Path, seconds=0.3, seed=0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, round(16000 * seconds)), 16000)


def test_a_manifest_carries_its_columns_and_names_what_is_missing(tmp_path):
    for number in range(3):
        write_noise(tmp_path / "audio" / f"{number}.wav", seed=number)
    (tmp_path / "list.csv").write_text(
        "filename,seconds,label,split\naudio/0.wav,9,a;b,train\naudio/1.wav,9,,test\naudio/gone.wav,9,c,test\n"
        "list.csv,9,c,test\n"
    )
    assert run(tmp_path / "list.csv", "--out", tmp_path / "out") == 1
    kept = [(r["name"], r["seconds"], r["label"], r["split"]) for r in index_of(tmp_path / "out" / "000000.tar")]
    assert kept == [("audio/0.wav", 0.3, "a;b", "train"), ("audio/1.wav", 0.3, "", "test")]
    assert [Path(path).name for path, _ in rows(tmp_path / "out")[1:]] == ["gone.wav", "list.csv"]


def test_text_lists_files_and_several_inputs(tmp_path):
    for name in ("a/x.wav", "b/x.wav", "b/x.flac", "c.wav"):
        write_noise(tmp_path / name)
    (tmp_path / "more.txt").write_text(f"c.wav\n\n{tmp_path}/a/x.wav\n")
    assert run(tmp_path / "a", tmp_path / "b", tmp_path / "c.wav", tmp_path / "more.txt", "--out", tmp_path / "o") == 0
    found = [row["name"] for row in index_of(tmp_path / "o" / "000000.tar")]
    assert found[:5] == ["a/x.wav", "b/x.flac", "b/x-1.wav", "c.wav", "c-1.wav"]
    assert len(set(found)) == 6 and not (tmp_path / "o" / "skipped.csv").exists()


def test_damage_beyond_the_header_is_found_by_check(tmp_path):
    write_noise(tmp_path / "in" / "a.flac", 3.0)
    data = (tmp_path / "in" / "a.flac").read_bytes()
    (tmp_path / "in" / "b.flac").write_bytes(data[:20_000] + bytes(20_000) + data[40_000:])
    assert run(tmp_path / "in", "--out", tmp_path / "quick") == 0
    assert run(tmp_path / "in", "--out", tmp_path / "checked", "--check") == 1
    assert [row["name"] for row in index_of(tmp_path / "checked" / "000000.tar")] == ["a.flac"]


def tar_of(clips: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_index_of_shards_that_exist(demo, tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clips = {path.name: path.read_bytes() for path in sorted(demo.rglob("*.opus"))[:4]}
    names = list(clips)
    shards = [
        tar_of({names[0]: clips[names[0]], "0.json": b"{}", "bad.wav": b"x"}),
        tar_of({n: clips[n] for n in names[1:]}),
    ]
    root = str(tmp_path) if place == "local" else "memory://indexed"
    for number, data in enumerate(shards):
        with fsspec.open(f"{root}/{number}.tar", "wb") as file:
            file.write(data)
    assert run("--index", f"{root}/{{0..1}}.tar") == 1
    assert rows(tmp_path)[1][0] == f"{root}/0.tar/bad.wav"
    monkeypatch.setattr("src.data.sources.index.probe", None)
    monkeypatch.setattr("src.data.packing.index_shards.walk_tar", None)  # a second time nothing is read again
    assert run("--index", f"{root}/*.tar") == 1
    source = ShardSource(f"{root}/*.tar")
    assert [source.read(i) for i in range(4)] == list(clips.values())
    assert [name for name, _ in source.bad] == ["0.tar/bad.wav"]


def test_the_index_is_made_anew_when_the_shard_has_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "a.wav")
    data = (tmp_path / "a.wav").read_bytes()
    for members in ({"a.wav": data}, {"a.wav": data, "b.wav": data}):
        (tmp_path / "x.tar").write_bytes(tar_of(members))
        assert run("--index", tmp_path / "x.tar") == 0
        assert [row["name"] for row in index_of(tmp_path / "x.tar")] == list(members)
    (tmp_path / "y.tar").write_bytes(b"not a tar" * 200)
    assert run("--index", tmp_path / "*.tar") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere", "--out", "o"], "no file or folder nowhere"),
        (["nowhere"], "--out is missing"),
        (["file.bin", "--out", "o"], "has no audio suffix"),
        (["empty", "--out", "o"], "holds no audio"),
        (["list.csv", "--out", "o"], "no column filename"),
        (["list.txt", "--out", "o"], "lists no files"),
        (["--index", "nowhere.tar"], "no shard nowhere.tar"),
        (["file.bin", "--out", "o", "--shard-megabytes", "0"], "--shard-megabytes"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("file.bin").touch()
    Path("empty").mkdir()
    Path("list.csv").write_text("name,label\nx,y\n")
    Path("list.txt").touch()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and words in error
    assert not Path("o").exists()


@pytest.mark.parametrize("path", ["wavs/../../w/0.wav", "a/../..", "a/..", ".", "/a/../../0.wav"])
def test_a_manifest_path_that_climbs_out_is_refused(tmp_path, capsys, path):
    (tmp_path / "list.csv").write_text(f"filename,label\nok.wav,a\n\n{path},b\n")
    (tmp_path / "list.txt").write_text(f"ok.wav\n\n{path}\n")
    for name, line in (("list.csv", 4), ("list.txt", 3)):
        assert run(tmp_path / name, "--out", tmp_path / "out") == 2
        assert f"{name}, line {line}: {path} " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_member_names_have_no_dots_as_folders(tmp_path):
    write_noise(tmp_path / "a" / "0.wav")
    write_noise(tmp_path / "a" / "b" / "1.wav")
    (tmp_path / "lists").mkdir()
    paths = ["../a/0.wav", "../a/b/../0.wav", "./../a/./b/1.wav", f"{tmp_path}/a/b/../b/1.wav"]
    (tmp_path / "lists" / "list.txt").write_text("\n".join(paths))
    assert run(tmp_path / "lists" / "list.txt", "--out", tmp_path / "out") == 0
    names = [row["name"] for row in index_of(tmp_path / "out" / "000000.tar")]
    assert names == ["a/0.wav", "a/0-1.wav", "a/b/1.wav", f"{str(tmp_path)[1:]}/a/b/1.wav"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the hostile files of ../shared/audio/bad")
def test_hostile_files_are_left_out_and_listed(tmp_path):
    assert run(SHARED / "bad", "--out", tmp_path) == 1
    refused = {"empty.wav", "noise_bytes.flac", "text.wav", "truncated_header.wav", "zero_rate.wav", "zero_samples.wav"}
    assert {Path(path).name for path, _ in rows(tmp_path)[1:]} == refused
    assert len(index_of(tmp_path / "000000.tar")) == 23
