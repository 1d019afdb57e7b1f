"""Packing into a Hugging Face dataset: what tars hold, as `datasets`, training, `embed` and pandas read it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import soundfile

from src import embed, pack
from src.config.settings import DataConfig, SourceConfig
from src.data.packing import pack as packing
from src.data.packing import parquet_shard
from src.data.packing.parquet_shard import ParquetShard, dataset_schema
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.sources.hub import HuggingFaceSource
from src.data.sources.index import read_member
from src.data.sources.shards import ShardSource
from src.data.sources.storage import list_names, read_file
from src.encoders.save import save_encoder
from src.models import create_encoder
from src.train import parse

ROOT = Path(__file__).parents[1]
LAUNCHED = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID")
SMALL = ["--shard-megabytes", "0.1"]
SEGMENTS = ["--audio", "flac", "--segment-seconds", "1", *SMALL]
CLIPS = 24


@pytest.fixture(autouse=True)
def alone(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def many(tmp_path_factory, clips) -> Path:
    """24 files in two class folders, and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    for number, clip in enumerate(clips[:CLIPS]):
        file = folder / "ab"[number % 2] / f"{number:02}.wav"
        file.parent.mkdir(exist_ok=True)
        soundfile.write(file, clip.numpy(), 16000)
    (folder / "a" / "broken.wav").write_bytes(b"RIFF")
    return folder


def run(*arguments) -> int:
    return pack.main([*map(str, arguments), "--workers", "1"])


def run_parquet(*arguments) -> int:
    return run(*arguments, "--format", "parquet")


def rows_of(folder: Path) -> list[dict]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.mark.parametrize("options", [SMALL, SEGMENTS], ids=["keep", "segments"])
def test_rows_are_what_a_tar_and_its_index_hold(many, tmp_path, capsys, options):
    assert run(many, "--out", tmp_path / "tars", *options) == 1
    printed = [line for line in capsys.readouterr().out.splitlines() if "decoding" not in line]
    assert run_parquet(many, "--out", tmp_path / "set", *options) == 1
    expected = []
    for tar in sorted((tmp_path / "tars").glob("*.tar")):
        for row in pq.read_table(f"{tar}.index.parquet").to_pylist():
            data = read_member(str(tar), row["name"], row.pop("offset"), row["size"])
            expected.append({"audio": {"bytes": data, "path": row["name"]}, **row})
    assert rows_of(tmp_path / "set") == expected and {row["label"] for row in expected} == {"a", "b"}
    captured = capsys.readouterr().out.splitlines()
    assert [line for line in captured if "decoding" not in line] == printed
    names = sorted(path.name for path in (tmp_path / "set").glob("*"))
    assert names == [f"train-{n:05}-of-{len(names):05}.parquet" for n in range(len(names))] and len(names) > 5
    assert (tmp_path / "set.skipped.csv").read_text() == (tmp_path / "tars" / "skipped.csv").read_text()


def test_other_libraries_open_the_folder(many, tmp_path):
    assert run_parquet(many, "--out", tmp_path / "set", *SEGMENTS) == 1
    rows = rows_of(tmp_path / "set")
    file = str(next((tmp_path / "set").glob("*.parquet")))
    for opened in (datasets.load_dataset(str(tmp_path / "set")), datasets.load_dataset("parquet", data_files=file)):
        assert isinstance(opened["train"].features["audio"], datasets.Audio)
    found = datasets.load_dataset(str(tmp_path / "set"), split="train").cast_column(
        "audio", datasets.Audio(decode=False)
    )
    assert list(found) == rows
    streamed = datasets.load_dataset(str(tmp_path / "set"), split="train", streaming=True)
    assert isinstance(streamed.features["audio"], datasets.Audio)
    table = pandas.read_parquet(tmp_path / "set")
    assert table["audio"].tolist() == [row["audio"] for row in rows]
    assert table["start_seconds"].tolist() == [row["start_seconds"] for row in rows]


def test_the_schema_is_the_one_that_datasets_writes():
    schema = dataset_schema(["label", "parent", "start_seconds"])
    features = datasets.Features.from_arrow_schema(schema)
    assert features.arrow_schema == schema
    ours, theirs = (json.loads(each.metadata[b"huggingface"]) for each in (schema, features.arrow_schema))
    assert ours == theirs and isinstance(features["audio"], datasets.Audio)


@pytest.mark.parametrize("streaming", [False, True])
def test_training_sees_each_clip_once_an_epoch(many, tmp_path, streaming):
    assert run_parquet(many, "--out", tmp_path / "set", "--audio", "flac", *SMALL) == 1
    source = SourceConfig("huggingface", str(tmp_path / "set"), streaming=streaming)
    data = PretrainDataModule(DataConfig(sources=[source], batch_size=6, window_clips=CLIPS, crop_seconds=3.0), 0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    data.prepare_data()
    data.setup()
    batches = [batch for _, batch in zip(range(CLIPS // 6), data.train_dataloader(), strict=False)]
    keys = [key for batch in batches for key in batch["key"]]
    assert len(set(keys)) == len(keys) == CLIPS


def test_the_source_has_labels_groups_and_segments(many, tmp_path, capsys):
    assert run(many, "--out", tmp_path / "tars", *SEGMENTS) == 1
    assert run_parquet(many, "--out", tmp_path / "set", *SEGMENTS) == 1
    tars = ShardSource(f"{tmp_path}/tars/*.tar")
    config = SourceConfig("huggingface", str(tmp_path / "set"), label_column="label", group_column="group")
    rows = HuggingFaceSource(config)
    assert len(rows) == len(tars) and list(rows.class_names) == list(tars.class_names) and rows.has_segments
    for i in range(len(tars)):
        assert rows.segment(i) == tars.segment(i) and rows.annotation(i) == tars.annotation(i)
        assert rows.read(i) == tars.read(i) and rows.seconds[i] == tars.seconds[i]


def test_embeddings_of_it_are_those_of_the_tars(many, tmp_path):
    assert run(many / "b", "--out", tmp_path / "tars", *SEGMENTS) == 0
    assert run_parquet(many / "b", "--out", tmp_path / "set", *SEGMENTS) == 0
    save_encoder(create_encoder("tiny"), tmp_path / "encoder")
    for name, what in (("a", tmp_path / "set"), ("b", f"{tmp_path}/tars/*.tar")):
        options = ["--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / f"{name}.parquet")]
        assert embed.main([str(what), *options, "--workers", "1"]) == 0
    ours, theirs = (
        pq.read_table(tmp_path / f"{name}.parquet").to_pandas().sort_values(["parent", "start_seconds"])
        for name in "ab"
    )
    assert (
        ours[["parent", "start_seconds"]].to_numpy().tolist() == theirs[["parent", "start_seconds"]].to_numpy().tolist()
    )
    np.testing.assert_allclose(np.stack(ours["embedding"]), np.stack(theirs["embedding"]), atol=1e-5)
    assert ours["path"].iloc[0].startswith(f"{tmp_path / 'set'}:train#")


def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not(many, tmp_path, monkeypatch):
    assert run_parquet(many, "--out", tmp_path / "whole", *SEGMENTS) == 1
    read, count = packing._read, iter(range(100))

    def interrupted(clip, whole):
        if next(count) == 15:
            raise KeyboardInterrupt
        return read(clip, whole)

    monkeypatch.setattr(packing, "_read", interrupted)
    assert run_parquet(many, "--out", tmp_path / "cut", *SEGMENTS) == 130
    monkeypatch.setattr(packing, "_read", read)
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("*.parquet")}
    assert done and rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")[: len(rows_of(tmp_path / "cut"))]
    assert run_parquet(many, "--out", tmp_path / "cut", *SEGMENTS) == 1
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    assert all(file.stat().st_mtime_ns == then for file, then in done.items())


def test_a_killed_process_leaves_whole_files_only(many, tmp_path):
    assert run_parquet(many, "--out", tmp_path / "whole", *SEGMENTS) == 1
    out = tmp_path / "cut"
    command = [sys.executable, "-m", "src.pack", many, "--out", out, *SEGMENTS, "--format", "parquet", "--workers", "1"]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(list(out.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = out / ".train-00003.x.partial"
    half.write_bytes(b"PAR1")  # wherever the kill came
    whole = files_of(tmp_path / "whole")
    assert files_of(out).items() <= whole.items() and files_of(out)
    assert len(datasets.load_dataset(str(out), split="train")) == len(rows_of(out))
    assert run_parquet(many, "--out", out, *SEGMENTS) == 1
    assert files_of(out) == whole


def test_two_parts_are_one_set(many, tmp_path, capsys):
    assert run_parquet(many, "--out", tmp_path / "one", *SEGMENTS) == 1
    assert run_parquet(many, "--out", tmp_path / "two", *SEGMENTS, "--part", "2/2") == 0
    assert "part 2/2" in capsys.readouterr().out
    assert run_parquet(many, "--out", tmp_path / "two", *SEGMENTS, "--part", "1/2") == 1
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_url(many, tmp_path):
    for _ in range(2):  # a second time, everything is finished
        assert run_parquet(many / "b", "--out", "memory://dataset", *SEGMENTS) == 0
    assert run_parquet(many / "b", "--out", tmp_path / "b", *SEGMENTS) == 0
    uploaded = {name: read_file(f"memory://dataset/{name}") for name in list_names("memory://dataset")}
    assert uploaded == files_of(tmp_path / "b")


def test_splits_are_files_of_their_own_with_the_same_columns(many, tmp_path, capsys):
    names = sorted(path.relative_to(many).as_posix() for path in many.glob("b/*.wav"))
    lines = [f"{many}/{name},{split},b" for name, split in zip(names, ["test", "dev", "", "test"], strict=False)]
    (tmp_path / "list.csv").write_text("\n".join(["filename,split,label", *lines]))
    assert run_parquet(tmp_path / "list.csv", many / "a" / "00.wav", "--out", tmp_path / "set") == 0
    assert "data.sources.0.split" not in capsys.readouterr().err
    opened = datasets.load_dataset(str(tmp_path / "set"))
    assert {name: opened[name].num_rows for name in opened} == {"train": 2, "validation": 1, "test": 2}
    assert opened["train"]["label"] == ["b", None] and opened["test"].features == opened["train"].features
    (tmp_path / "only.csv").write_text("\n".join(["filename,split", f"{many}/{names[0]},test"]))
    assert run_parquet(tmp_path / "only.csv", "--out", tmp_path / "only") == 0
    advice = capsys.readouterr().err
    options, overrides = parse(advice[advice.index("fit") :].split())
    assert "data.sources.0.split=test" in overrides and "configs/data/hub.yaml" in options.config


def test_a_file_that_breaks_off_leaves_no_segment_behind(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_shard, "_SPOOLED_BYTES", 20_000)  # longer clips wait on disk
    samples = np.concatenate([clip.numpy() for clip in clips])
    soundfile.write(tmp_path / "in.flac", samples, 16000)
    data = (tmp_path / "in.flac").read_bytes()
    (tmp_path / "in").mkdir()
    for name, content in (("a", data), ("b", data[: int(0.9 * len(data))]), ("c", data)):
        (tmp_path / "in" / f"{name}.flac").write_bytes(content)
    assert run_parquet(tmp_path / "in", "--out", tmp_path / "o", "--audio", "pcm16", "--segment-seconds", 5) == 1
    rows = rows_of(tmp_path / "o")
    assert {row["parent"] for row in rows} == {"a.flac", "c.flac"}
    assert sum(row["seconds"] for row in rows) == pytest.approx(2 * len(samples) / 16000)
    assert "b.flac" in (tmp_path / "o.skipped.csv").read_text()


def test_a_clip_is_read_without_the_rest_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_shard, "_GROUP_BYTES", 10_000)
    shard = ParquetShard(tmp_path / "x.parquet", "x.parquet", [])
    sizes = [4_000, 4_000, 4_000, 25_000, 9_000, 100]
    for number, size in enumerate(sizes):
        shard.add(str(number), bytes([number]) * size, {}, {})
        shard.keep()
    shard.finish({"skipped": []})
    file = pq.ParquetFile(tmp_path / "x.parquet")
    groups = [file.read_row_group(i)["size"].to_pylist() for i in range(file.num_row_groups)]
    assert groups == [[4_000, 4_000], [4_000], [25_000], [9_000, 100]]
    assert (tmp_path / "x.parquet").stat().st_size < 1.2 * sum(sizes)


def test_a_clip_that_no_row_can_hold_is_skipped(many, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parquet_shard, "_MOST_BYTES", 20_000)
    assert run_parquet(many / "b", "--out", tmp_path / "o") == 1
    assert "a row holds up to 2 GB" in capsys.readouterr().err
    sizes = [path.stat().st_size for path in (many / "b").iterdir()]
    assert sorted(row["size"] for row in rows_of(tmp_path / "o")) == sorted(size for size in sizes if size <= 20_000)


def test_a_set_without_a_readable_clip_is_empty(many, tmp_path):
    assert run_parquet(many / "a" / "broken.wav", "--out", tmp_path / "o") == 1
    assert rows_of(tmp_path / "o") == []


def test_formats_and_options_do_not_mix_in_one_folder(many, tmp_path, capsys):
    assert run(many / "b", "--out", tmp_path / "tars") == 0
    assert run_parquet(many / "b", "--out", tmp_path / "tars") == 2
    assert run_parquet(many / "b", "--out", tmp_path / "set") == 0
    before = files_of(tmp_path / "set")
    assert run(many / "b", "--out", tmp_path / "set") == 2
    assert capsys.readouterr().err.count("not made from these inputs; choose another --out") == 2
    assert run_parquet(many / "b", "--out", tmp_path / "set", "--audio", "flac") == 2
    assert "packed from other files or with other options" in capsys.readouterr().err
    assert files_of(tmp_path / "set") == before


@pytest.mark.parametrize(
    ("table", "arguments", "words"),
    [
        ("filename,audio\n{file},x\n", [], "has a column audio, as the dataset has for its audio; rename"),
        ("filename,split\n{file},fold7\n", [], "split fold7 is not one of train, valid, test"),
        ("filename,parent\n{file},x\n", SEGMENTS, "has a column parent, as segments get it; rename"),
        ("filename\n{file}\n", ["--index"], "--format parquet has no effect with --index"),
    ],
)
def test_wrong_use_is_one_sentence(many, tmp_path, capsys, table, arguments, words):
    (tmp_path / "list.csv").write_text(table.format(file=many / "b" / "01.wav"))
    assert run_parquet(tmp_path / "list.csv", "--out", tmp_path / "o", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "o").exists()
