"""Folders, shards and Hugging Face datasets: what is found, what is left out, what a user is told."""

import io
import json
import os
import re
import shutil
import tarfile
import warnings
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.audio.decode import decode
from src.config.settings import SourceConfig
from src.data.sources.folder import FolderSource
from src.data.sources.open import open_inputs, open_source
from src.data.sources.source import Source
from src.errors import UserError
from tests.training.sources import DEMO


def hub(path, **changes) -> Source:
    return open_source(SourceConfig(kind="huggingface", path=str(path), **changes))


def shards(path) -> Source:
    return open_source(SourceConfig(kind="shards", path=str(path)))


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def refusal(*words):
    """One line with all the words."""
    return pytest.raises(UserError, match="^(?=[^\n]*$)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


def tar_of(clips: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in clips.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture(scope="module")
def few(demo_table, tmp_path_factory):
    """A parquet file of the demo's first 12 rows, with their features."""
    file = tmp_path_factory.mktemp("few") / "few.parquet"
    pq.write_table(demo_table.slice(0, 12), file)
    return file


@pytest.fixture(scope="module")
def few_dataset(few):
    return datasets.load_dataset("parquet", data_files=str(few), split="train").cast_column(
        "audio", datasets.Audio(decode=False)
    )


# Folders


def test_a_folder_is_read_recursively_in_the_order_of_paths(tmp_path, write_wav):
    for name in ("b.WAV", "a.wav", "deep/er/c.Wav", "ünï cödé 音.wav"):
        write_wav(tmp_path / name)
    for name in (".hidden.wav", ".cache/a.wav", "deep/.git/a.wav", "notes.txt", "wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.wav").mkdir()
    source = FolderSource(str(tmp_path))
    assert names(source) == ["a.wav", "b.WAV", "deep/er/c.Wav", "ünï cödé 音.wav"]
    assert source.bad == []


def test_a_folder_under_a_hidden_one_is_read(tmp_path, write_wav):
    write_wav(tmp_path / ".data" / "a.wav")
    assert names(FolderSource(str(tmp_path / ".data"))) == ["a.wav"]


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_utf8(tmp_path, write_wav):
    write_wav(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    source = FolderSource(str(tmp_path))
    assert len(source.waveform(0)) == 8000
    json.dumps(names(source)).encode()


def test_lengths_and_crops_come_from_the_files(tmp_path, write_wav):
    written = [write_wav(tmp_path / f"{n}.wav", 0.2 * (n + 1), seed=n) for n in range(3)]
    source = FolderSource(str(tmp_path))
    np.testing.assert_allclose(source.seconds, [0.2, 0.4, 0.6])
    for number, samples in enumerate(written):
        np.testing.assert_array_equal(source.waveform(number), samples)
    np.testing.assert_array_equal(source.waveform(2, 0.1, 0.25), written[2][1600:5600])


def test_bad_files_are_left_out_and_named(bad_files):
    source = FolderSource(str(bad_files))
    refused = {"empty.wav", "noise_bytes.flac", "text.wav", "truncated_header.wav", "zero_rate.wav", "zero_samples.wav"}
    assert {name for name, _ in source.bad} == refused
    assert all(reason and "\n" not in reason for _, reason in source.bad)
    assert not refused & set(names(source)) and len(source) == len(source.seconds) == 23
    for number, name in enumerate(names(source)):  # numbers are those of the readable clips
        assert Path(str(source.read(number))).name == name


# Shards


@pytest.fixture
def tars(tmp_path, write_wav):
    """Two tars of two clips and a text each; and the clips by name."""
    clips = {}
    for number in range(4):
        write_wav(tmp_path / "clips" / f"{number}.wav", 0.1 * (number + 1), seed=number)
        clips[f"{number}.wav"] = (tmp_path / "clips" / f"{number}.wav").read_bytes()
    for shard in range(2):
        part = {name: clips[name] for name in list(clips)[2 * shard : 2 * shard + 2]}
        (tmp_path / f"{shard:03}.tar").write_bytes(tar_of({**part, "0.json": b"{}"}))
    return tmp_path, clips


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "*.tar", "00[01].tar"])
def test_shards_by_pattern(tars, pattern):
    folder, clips = tars
    source = shards(folder / pattern)
    assert names(source) == ["000.tar/0.wav", "000.tar/1.wav", "001.tar/2.wav", "001.tar/3.wav"]
    assert [source.read(i) for i in range(4)] == list(clips.values())
    np.testing.assert_allclose(source.seconds, [0.1, 0.2, 0.3, 0.4])
    assert source.shards == 2
    np.testing.assert_array_equal(source.waveform(3, 0.1, 0.2), decode(clips["3.wav"])[1600:4800])


def test_one_shard_and_a_range_that_starts_late(tars):
    folder, _ = tars
    assert len(shards(folder / "000.tar")) == 2
    assert names(shards(folder / "{001..001}.tar")) == ["001.tar/2.wav", "001.tar/3.wav"]


def test_shards_on_another_file_system(tars):
    folder, clips = tars
    memory = fsspec.filesystem("memory")
    for shard in range(2):
        memory.pipe(f"/clips/{shard:03}.tar", (folder / f"{shard:03}.tar").read_bytes())
    try:
        source = shards("memory://clips/{000..001}.tar")
        assert [source.read(i) for i in range(4)] == list(clips.values())
        np.testing.assert_array_equal(source.waveform(1), decode(clips["1.wav"]))
    finally:
        memory.rm("/clips", recursive=True)


def index_of(tar) -> dict[str, list]:
    with tarfile.open(tar) as opened:
        members = [m for m in opened if m.name.endswith(".wav")]
    return {
        "name": [m.name for m in members],
        "offset": [m.offset_data for m in members],
        "size": [m.size for m in members],
    }


def test_an_index_beside_the_shard_is_taken(tars, monkeypatch):
    folder, clips = tars
    index = {**index_of(folder / "000.tar"), "seconds": [0.1, float("nan")]}
    pq.write_table(pa.table(index), folder / "000.tar.index.parquet")
    for name in ("probe", "walk_tar"):
        monkeypatch.setattr(f"src.data.sources.index.{name}", None)  # neither tar nor headers are read
    source = shards(folder / "000.tar")
    assert names(source) == ["000.tar/0.wav"] and source.read(0) == clips["0.wav"]
    assert [name for name, _ in source.bad] == ["000.tar/1.wav"]


def test_an_index_without_lengths_has_the_headers_read(tars):
    folder, _ = tars
    pq.write_table(pa.table(index_of(folder / "000.tar")), folder / "000.tar.index.parquet")
    np.testing.assert_allclose(shards(folder / "{000..001}.tar").seconds, [0.1, 0.2, 0.3, 0.4])


@pytest.mark.filterwarnings("ignore:the shard")
def test_a_shard_that_was_cut_off_gives_what_is_whole(tars):
    folder, clips = tars
    whole = (folder / "001.tar").read_bytes()
    first_end = 512 + -(-len(clips["2.wav"]) // 512) * 512
    (folder / "001.tar").write_bytes(whole[: first_end + 512 + 1000])  # within the second clip
    source = shards(folder / "001.tar")
    assert names(source) == ["001.tar/2.wav"]
    np.testing.assert_array_equal(source.waveform(0), decode(clips["2.wav"]))


def test_an_unreadable_member_is_left_out(tmp_path, tars):
    _, clips = tars
    (tmp_path / "mixed.tar").write_bytes(tar_of({"bad.wav": b"no sound", "good.wav": clips["0.wav"]}))
    source = shards(tmp_path / "mixed.tar")
    assert names(source) == ["mixed.tar/good.wav"] and [name for name, _ in source.bad] == ["mixed.tar/bad.wav"]
    assert source.read(0) == clips["0.wav"]


# Hugging Face


def test_the_demo_is_read_with_its_labels(encoded, demo_table):
    source = hub(DEMO, split="validation", label_column="label")
    assert [source.read(i) for i in range(len(source))] == encoded
    labels = demo_table.column("label").to_pylist()
    assert [source.label(i) for i in range(len(source))] == labels
    assert source.class_names[:3] == ["kick", "snare", "hihat"]
    assert source.name(3) == "3:validation_0003.opus"


def test_labels_that_are_strings_are_numbered_by_name(few, demo_table):
    source = hub(few, label_column="source")
    strings = demo_table.column("source").to_pylist()[:12]
    assert source.class_names == sorted(set(strings))
    assert [source.class_names[source.label(i)] for i in range(12)] == strings


def test_a_row_without_class_has_the_label_minus_one(tmp_path, demo_table):
    rows = demo_table.slice(0, 3)
    column = rows.column_names.index("label")
    labels = pa.array([2, None, 0], rows.schema.field("label").type)
    pq.write_table(rows.set_column(column, rows.schema.field("label"), labels), tmp_path / "a.parquet")
    source = hub(tmp_path / "a.parquet", label_column="label")
    assert source.class_names[0] == "kick" and [source.label(i) for i in range(3)] == [2, -1, 0]


def test_a_source_without_label_column_has_no_labels(few):
    with refusal("label_column"):
        hub(few).label(0)


@pytest.mark.parametrize("layout", ["parquet", "disk", "dictionary"])
def test_every_layout_of_a_local_dataset(tmp_path, few, few_dataset, encoded, layout):
    path = few if layout == "parquet" else tmp_path / "saved"
    if layout == "disk":
        few_dataset.save_to_disk(path)
    elif layout == "dictionary":
        three = few_dataset.select(range(3))
        datasets.DatasetDict({"train": three, "held_out": few_dataset}).save_to_disk(path)
    source = hub(path, split="held_out" if layout == "dictionary" else "train")
    assert [source.read(i) for i in range(len(source))] == encoded[:12]


@pytest.mark.parametrize("column", ["struct", "string"])
def test_a_column_of_paths(tmp_path, encoded, column):
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / f"{number}.opus"))
        (tmp_path / f"{number}.opus").write_bytes(encoded[number])
    audio = [{"bytes": None, "path": path} for path in paths] if column == "struct" else paths
    pq.write_table(pa.table({"audio": audio}), tmp_path / "paths.parquet")
    source = hub(tmp_path / "paths.parquet")
    for number in range(3):
        np.testing.assert_array_equal(source.waveform(number), decode(encoded[number]))


def test_rows_without_audio_are_left_out(tmp_path, encoded):
    audio = [{"bytes": encoded[0], "path": None}, None, {"bytes": None, "path": None}, {"bytes": b"x", "path": "x.wav"}]
    audio.append({"bytes": None, "path": str(tmp_path / "gone.wav")})
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(
        pa.table({"audio": pa.array(audio, struct), "label": ["a", "b", "c", "d", None]}), tmp_path / "a.parquet"
    )
    source = hub(tmp_path / "a.parquet", label_column="label")
    assert len(source) == 1 and source.read(0) == encoded[0] and source.label(0) == 0
    assert [name for name, _ in source.bad] == ["1", "2", "3:x.wav", "4:gone.wav"]


# What a user is told


def test_no_such_folder(tmp_path):
    with refusal("no folder", "nowhere"):
        open_source(SourceConfig(kind="folder", path=str(tmp_path / "nowhere")))


def test_a_folder_without_audio(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with refusal("no audio", ".flac"):
        open_source(SourceConfig(kind="folder", path=str(tmp_path)))


@pytest.mark.parametrize("pattern", ["none.tar", "*.tar", "{000..003}.tar"])
def test_no_such_shard(tmp_path, pattern):
    (tmp_path / "000.txt").touch()
    with refusal("no shard"):
        shards(tmp_path / pattern)


@pytest.mark.parametrize("damage", ["missing", "not a tar"])
def test_one_shard_of_several_that_cannot_be_read_is_named_and_left_out(tars, damage):
    folder, clips = tars
    if damage == "not a tar":
        (folder / "002.tar").write_bytes(b"not a tar" * 200)
    source = shards(folder / "{000..002}.tar")
    assert [source.read(i) for i in range(4)] == list(clips.values()) and source.shards == 2
    assert [shard for shard, _ in source.missing] == [str(folder / "002.tar")] and source.missing == source.bad
    if damage == "not a tar":  # mended, it is there again
        (folder / "002.tar").write_bytes((folder / "001.tar").read_bytes())
        assert len(shards(folder / "{000..002}.tar")) == 6


def test_a_shard_that_is_not_a_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"not a tar" * 200)
    with refusal("a.tar", "cannot be read"):
        shards(tmp_path / "a.tar")


def test_a_shard_without_audio(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of({"a.json": b"{}"}))
    with refusal("no audio"):
        shards(tmp_path / "a.tar")


def test_a_shard_of_an_unknown_protocol():
    with refusal("gopher"):
        shards("gopher://somewhere/a.tar")


def test_an_index_that_is_none(tars):
    (tars[0] / "000.tar.index.parquet").write_bytes(b"x")
    with refusal("000.tar.index.parquet", "delete"):
        shards(tars[0] / "000.tar")


def test_no_such_split(tmp_path, few_dataset):
    with refusal("split=valid", "validation", "test"):
        hub(DEMO, split="valid")
    datasets.DatasetDict({"held_out": few_dataset}).save_to_disk(tmp_path / "saved")
    with refusal("split=train", "held_out"):
        hub(tmp_path / "saved")


def test_no_such_column(few):
    with refusal("audio_column=audios", "did you mean audio?"):
        hub(few, audio_column="audios")
    with refusal("label_column=lable", "did you mean label?"):
        hub(few, label_column="lable")


def test_a_hub_id_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with refusal("nobody/nothing", "network"):
        hub("hf://nobody/nothing")


def test_a_missing_path_is_not_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    for open_it in (lambda: hub("my/sounds"), lambda: open_inputs(["my/sounds"])):
        with refusal("my/sounds", "looked in", "hf://my/sounds"):
            open_it()


@pytest.mark.parametrize("name", ["a [1]", "b #2", "50 %", "Vögel", "c*", "{d}", "f%20g"])
def test_a_literal_path_is_that_path(name, tmp_path, few, write_wav):
    sounds, data = tmp_path / f"sounds {name}", tmp_path / f"data {name}"
    write_wav(sounds / f"{name}.wav")
    data.mkdir()
    shutil.copy(few, data / "train-0.parquet")
    shutil.copy(few, tmp_path / f"{name}.parquet")
    with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
        tar.add(sounds / f"{name}.wav", "x.wav")
    (tmp_path / f"tars {name}").mkdir()
    shutil.copy(tmp_path / f"{name}.tar", tmp_path / f"tars {name}" / f"{name}.tar")
    inputs = [sounds, data, tmp_path / f"{name}.parquet", tmp_path / f"{name}.tar", tmp_path / f"tars {name}" / "*.tar"]
    sources = open_inputs([str(each) for each in inputs])
    assert [len(source) for source in sources] == [1, 12, 12, 1, 1]
    assert sources[3].path(0) == f"{tmp_path}/{name}.tar/x.wav" and sources[0].path(0) == f"{sounds}/{name}.wav"


def test_a_stream_has_no_numbers():
    with refusal("streaming"):
        hub(DEMO, streaming=True)


# The cache of headers


def count_probes(monkeypatch) -> list:
    from src.data.sources import index

    probed, probe = [], index.probe
    monkeypatch.setattr(index, "probe", lambda file: probed.append(file) or probe(file))
    return probed


def test_headers_are_read_once(tmp_path, tars, few, monkeypatch):
    folder, _ = tars
    (folder / "clips" / "bad.wav").write_bytes(b"x")
    openers = (lambda: FolderSource(str(folder / "clips")), lambda: shards(folder / "*.tar"), lambda: hub(few))
    probed = count_probes(monkeypatch)
    first = [opener() for opener in openers]
    assert len(probed) == 4  # shards without an index; of the others no length has been asked for
    assert [len(source) for source in first] == [4, 4, 12]
    assert len(probed) == 5 + 4 + 12
    again = [opener() for opener in openers]
    assert [len(source) for source in again] == [4, 4, 12]
    assert len(probed) == 5 + 4 + 12
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.seconds, other.seconds)
        assert (one.bad, one.fingerprint, names(one)) == (other.bad, other.fingerprint, names(other))
    assert first[0].bad[0][0] == "bad.wav"


def test_a_changed_or_new_file_is_read_again_and_the_others_are_not(tmp_path, write_wav, monkeypatch):
    for name in ("a", "b", "c"):
        write_wav(tmp_path / f"{name}.wav", 0.5)
    before = FolderSource(str(tmp_path))
    assert len(before) == 3
    probed = count_probes(monkeypatch)
    write_wav(tmp_path / "b.wav", 0.7)
    write_wav(tmp_path / "d.wav", 0.9)
    (tmp_path / "a.wav").unlink()
    after = FolderSource(str(tmp_path))
    np.testing.assert_allclose(after.seconds, [0.7, 0.5, 0.9])
    assert sorted(Path(file).name for file in probed) == ["b.wav", "d.wav"]
    assert after.fingerprint != before.fingerprint


def test_a_changed_shard_is_walked_again(tars):
    folder, clips = tars
    before = shards(folder / "000.tar")
    (folder / "000.tar").write_bytes(tar_of({"new.wav": clips["3.wav"]}))
    after = shards(folder / "000.tar")
    assert names(after) == ["000.tar/new.wav"] and after.read(0) == clips["3.wav"]
    assert after.fingerprint != before.fingerprint


def test_without_a_cache_one_is_warned_and_goes_on(tmp_path, write_wav, monkeypatch, tars):
    write_wav(tmp_path / "a" / "a.wav")
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(FolderSource(str(tmp_path / "a"))) == 1
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(shards(tars[0] / "*.tar")) == 4


def test_a_damaged_cache_is_made_anew(tmp_path, write_wav, cache):
    write_wav(tmp_path / "a.wav")
    assert len(FolderSource(str(tmp_path))) == 1
    (file,) = cache.rglob("headers/*")
    file.write_bytes(b"PAR1 and no more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FolderSource(str(tmp_path)).seconds.tolist() == [0.5]
    assert not list((cache / "headers").glob("*.partial"))
