"""Shards that are missing, break or come from afar: retried, passed over, counted, and never a rank that waits."""

import builtins
import importlib
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml

from src.audio.decode import AudioError
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.batch import MAX_TRIES, replacement
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.sources import storage
from src.data.sources.shards import ShardSource
from src.data.sources.storage import expand_shards, open_filesystem, retry
from src.errors import UserError


@pytest.fixture
def tars(sources, tmp_path):
    """Copies of the demo's three shards (38 or 39 clips each) and of two of them more: five."""
    pattern = yaml.safe_load(sources["shards"])["path"]
    for number in range(5):
        shutil.copy(pattern.replace("{000..002}", f"{number % 3:03}"), tmp_path / f"{number:03}.tar")
    return tmp_path


@pytest.fixture
def remote(tars):
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/far/{number:03}.tar", (tars / f"{number:03}.tar").read_bytes())
    yield memory
    memory.rm("/far", recursive=True)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Those that would have been made, instead of them."""
    made: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", made.append)
    return made


def open_data(path, **changes) -> PretrainDataModule:
    source = SourceConfig(kind="shards", path=str(path))
    settings = {"batch_size": 4, "crop_seconds": 3.0, "window_clips": 64, "cache_gigabytes": 0, **changes}
    data = PretrainDataModule(DataConfig(sources=[source], **settings))
    data.prepare_data()
    return data


def test_patterns_of_urls(remote):
    urls = [f"memory:///far/{n:03}.tar" for n in range(3)]
    assert expand_shards("memory://far/*.tar") == [fsspec.core.url_to_fs(u)[0].unstrip_protocol(u[9:]) for u in urls]
    assert expand_shards("memory://far/{000..002}.tar") == ["memory://far/000.tar", "memory://far/001.tar",
                                                            "memory://far/002.tar"]  # fmt: skip
    assert expand_shards("memory://f{1..2}/{08..10}.tar")[-1] == "memory://f2/10.tar"
    ours = [ShardSource(pattern) for pattern in ("memory://far/*.tar", "memory://far/{000..002}.tar")]
    assert len(ours[0]) == len(ours[1]) == 115 and ours[0].read(70) == ours[1].read(70)
    with pytest.raises(UserError, match="no shard memory://near"):
        expand_shards("memory://near/*.tar")


@pytest.mark.parametrize("url, package", [("s3://bucket/{0..9}.tar", "s3fs"), ("gs://bucket/*.tar", "gcsfs")])
def test_a_driver_that_is_not_installed_is_named(monkeypatch, url, package):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name}")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, url[:2], raising=False)
    with pytest.raises(UserError, match=rf"^[^\n]*{url[:2]}://bucket[^\n]*; pip install {package}$"):
        open_filesystem(url)


def test_remote_reads_are_tried_again_and_what_is_not_there_is_not(pauses):
    answers = iter([OSError("busy"), RuntimeError("reset"), 7])

    def read():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry(read, True) == 7 and pauses == [0.5, 2.0]
    with pytest.raises(OSError, match="ZeroDivisionError"):
        retry(lambda: 1 // 0, True)
    assert len(pauses) == 5
    with pytest.raises(FileNotFoundError):
        retry(lambda: Path("nowhere").read_bytes(), True)
    assert len(pauses) == 5


def test_a_missing_shard_is_in_the_plan_and_too_many_stop_the_run(tars):
    (tars / "002.tar").unlink()
    data = open_data(tars / "{000..004}.tar", max_bad_share=0.2)
    facts = data.summary()
    assert facts.missing_shards == 1 and facts.shards == 4
    assert (str(tars / "002.tar"), "there is no such shard") in data.bad
    with pytest.raises(UserError, match=r"^1 of 5 shards [^\n]*max_bad_share=0.1 [^\n]*002.tar"):
        open_data(tars / "{000..004}.tar")
    with pytest.raises(UserError, match=r"no shard"):
        open_data(tars / "{007..009}.tar")


@pytest.mark.parametrize("damage", ["deleted", "cut off"])
def test_a_shard_that_breaks_while_training_is_passed_over(tars, damage):
    data = open_data(tars / "{000..004}.tar")
    if damage == "deleted":
        (tars / "001.tar").unlink()
    else:
        (tars / "001.tar").write_bytes((tars / "001.tar").read_bytes()[:2048])
    bad, keys = set(), []
    for batch in data.train_dataloader():
        assert len(batch["key"]) == 4
        bad |= {name for name, _ in batch["bad"]}
        keys += batch["key"]
        if batch["position"] >= data.summary().crops:
            break
    lost = {data.sources[0].name(i) for i in range(len(data.sources[0]))} - set(keys)
    assert lost and lost <= bad and all(name.startswith("001.tar/") for name in bad)


def test_storage_that_is_away_does_not_stall_the_run(remote, pauses, monkeypatch):
    source = ShardSource("memory://far/*.tar")
    monkeypatch.setattr(type(remote), "cat_file", lambda *_, **__: 1 // 0)
    for number in range(0, 115, 5):
        with pytest.raises(AudioError, match="cannot be read"):
            source.read(number)
    assert len(pauses) == 3 * 3  # once a shard
    monkeypatch.undo()
    monkeypatch.setattr("src.data.sources.shards._SKIP_SECONDS", 0.0)
    source._skipped.clear()
    assert len(source.read(0)) > 100


def test_a_source_that_travels_to_a_worker_reads_the_same(tars):
    import pickle

    source = ShardSource(str(tars / "*.tar"))
    parcel = pickle.dumps(source)
    assert len(parcel) < 3000
    other = pickle.loads(parcel)
    assert other.read(100) == source.read(100) and other.name(100) == source.name(100)
    np.testing.assert_array_equal(other.seconds, source.seconds)


def test_stand_ins_leave_a_large_shard():
    places = [replacement(50, attempt, 1_000_000) for attempt in range(MAX_TRIES)]
    assert places[:3] == [50, 51, 52] and len(set(places)) == MAX_TRIES and max(places) > 900_000
    assert sorted(replacement(3, attempt, 20) for attempt in range(20)) == list(range(20))


@pytest.mark.parametrize("workers", [0, 4])
def test_uneven_shards_on_two_ranks_give_each_clip_once_and_as_many_steps(tars, workers):
    """Five shards, of 38 or 39 clips."""
    data = [open_data(tars / "{000..004}.tar", num_workers=workers, window_clips=10_000) for _ in range(2)]
    count = data[0].summary().crops
    ranks = []
    for rank, each in enumerate(data):
        each.trainer = type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        batches = []
        for batch in each.train_dataloader():
            batches.append(batch)
            if batch["position"] >= count // 8 * 8:
                break
        ranks.append(batches)
    assert len(ranks[0]) == len(ranks[1]) == count // 8
    keys = [key for batches in ranks for batch in batches for key in batch["key"]]
    assert len(set(keys)) == len(keys) == count // 8 * 8
