"""The data as training sees it: the same batches from any number of workers and after any resume."""

import io
import itertools
import shutil
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.datamodule import PretrainDataModule
from src.errors import UserError
from src.share import cores

KINDS = ("huggingface", "folder", "shards", "streaming")
CLIPS = 115  # of the demo's validation split; none is longer than 2.5 s
ROUNDING = 0.01  # seconds: lengths are sorted in steps of this


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shared_cache")


@pytest.fixture(autouse=True)
def cache(shared_cache, monkeypatch):
    """One for all tests here: the demo is decoded once a kind of source."""
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(shared_cache))
    return shared_cache


def config_of(source: str | list[str], **changes) -> DataConfig:
    texts = [source] if isinstance(source, str) else source
    settings = {"batch_size": 8, "window_clips": 32, "crop_seconds": 3.0, **changes}
    if settings.get("batch_seconds"):
        settings["batch_size"] = None
    return DataConfig(sources=[SourceConfig(**yaml.safe_load(text)) for text in texts], **settings)


def open_data(config: DataConfig, seed: int = 0, rank: int = 0, world_size: int = 1) -> PretrainDataModule:
    data = PretrainDataModule(config, seed)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    data.prepare_data()
    data.setup()
    return data


def take(data: PretrainDataModule, count: int) -> list[dict]:
    return list(itertools.islice(data.train_dataloader(), count))


def assert_equal(batches: list[dict], expected: list[dict]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key, value in batch.items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


def through_a_checkpoint(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_change_nothing(sources, kind):
    expected = take(open_data(config_of(sources[kind], gain_db=3.0)), 18)
    assert_equal(take(open_data(config_of(sources[kind], gain_db=3.0, num_workers=2)), 18), expected)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_workers_change_nothing_without_the_cache(sources, kind):
    expected = take(open_data(config_of(sources[kind], cache_gigabytes=0)), 6)
    assert_equal(take(open_data(config_of(sources[kind], cache_gigabytes=0, num_workers=2)), 6), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_every_clip_once_an_epoch(sources, kind):
    keys = []
    for batch in open_data(config_of(sources[kind], batch_size=5)).train_dataloader():  # 115 = 23 * 5
        keys += batch["key"]
        if len(keys) >= 2 * CLIPS:
            break
    if kind == "streaming":  # a window ends where the stream ends
        assert len(set(keys[:CLIPS])) == len(set(keys[CLIPS : 2 * CLIPS])) == CLIPS
        assert keys[:CLIPS] != keys[CLIPS : 2 * CLIPS]
    else:  # crops of neighbouring epochs may share a window
        assert len(set(keys)) == CLIPS and max(map(keys.count, keys)) <= 3
        epoch = [
            r for b in take(open_data(config_of(sources[kind], batch_size=5, window_clips=CLIPS)), 23) for r in b["key"]
        ]
        assert len(set(epoch)) == len(epoch) == CLIPS


def test_another_seed_gives_another_order(sources):
    first, other = (take(open_data(config_of(sources["folder"]), seed), 4) for seed in (0, 1))
    assert [b["key"] for b in first] != [b["key"] for b in other]


@pytest.mark.parametrize(
    "budget", [{}, pytest.param({"batch_seconds": 12.0}, marks=pytest.mark.slow)], ids=["clips", "seconds"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_exactly(sources, kind, budget):
    config = config_of(sources[kind], **budget)
    data = open_data(config)
    loader, batches, states = data.train_dataloader(), [], []
    for batch in itertools.islice(loader, 34):  # over two epochs
        batches.append(batch)
        data.position = batch["position"]
        states.append(through_a_checkpoint(data.state_dict()))
    for done in (1, 4, 13, 14, 15, 16, 30):  # within windows, at their ends, at the end of the stream
        resumed = open_data(config)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed.load_state_dict(states[done - 1])
        assert resumed.position == batches[done - 1]["position"]
        assert_equal(take(resumed, 4), batches[done : done + 4])


@pytest.mark.parametrize("kind", ["folder", "streaming"])
def test_a_state_lies_behind_what_workers_have_read_ahead(sources, kind):
    config = config_of(sources[kind], num_workers=2)
    data = open_data(config)
    loader = iter(data.train_dataloader())
    batches = [next(loader) for _ in range(9)]
    data.position = batches[3]["position"]
    resumed = open_data(config)
    resumed.load_state_dict(through_a_checkpoint(data.state_dict()))
    assert_equal(take(resumed, 5), batches[4:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_can_be_saved_and_resumed_again(sources, kind):
    config = config_of(sources[kind])
    expected = take(open_data(config), 24)
    data, done = open_data(config), 0
    for step in (5, 1, 10, 4):
        batches = take(data, step)
        assert_equal(batches, expected[done : done + step])
        done += step
        data.position = batches[-1]["position"]
        state = through_a_checkpoint(data.state_dict())
        data = open_data(config)
        data.load_state_dict(state)


def test_other_clips_than_the_checkpoints_are_warned_of(sources):
    state = open_data(config_of(sources["folder"])).state_dict()
    with pytest.warns(UserWarning, match="not those of the checkpoint"):
        open_data(config_of(sources["shards"])).load_state_dict(state)


def test_a_stream_cannot_go_on_with_other_processes(sources):
    data = open_data(config_of(sources["streaming"]))
    take(data, 1)
    state = data.state_dict()
    with pytest.raises(UserError, match=r"1 processes .* not 2"):
        open_data(config_of(sources["streaming"]), world_size=2).load_state_dict(state)


def test_processes_share_the_batches_of_one(sources):
    one = take(open_data(config_of(sources["folder"])), 8)
    ranks = [take(open_data(config_of(sources["folder"], batch_size=4), rank=r, world_size=2), 8) for r in (0, 1)]
    for expected, *parts in zip(one, *ranks, strict=True):
        assert [len(part["key"]) for part in parts] == [4, 4]
        assert {part["position"] for part in parts} == {expected["position"]}
        found = {s: w for part in parts for s, w in zip(part["seed"].tolist(), part["waveform"], strict=True)}
        for seed, waveform, length in zip(
            expected["seed"].tolist(), expected["waveform"], expected["length"], strict=True
        ):
            assert torch.equal(found[seed][:length], waveform[:length])


def test_processes_read_parts_of_a_stream(sources):
    parts = [take(open_data(config_of(sources["streaming"], batch_size=5), rank=r, world_size=2), 13) for r in (0, 1)]
    first, second = ([key for batch in part for key in batch["key"]] for part in parts)
    assert not set(first) & set(second) and len(set(first) | set(second)) == CLIPS


def test_batches_of_seconds(sources):
    for kind in KINDS:
        sizes = set()
        for batch in take(open_data(config_of(sources[kind], batch_seconds=12.0)), 20):
            rows, samples = batch["waveform"].shape
            assert rows * samples / 16000 <= 12.0 + ROUNDING * rows
            sizes.add(rows)
        assert len(sizes) > 3


def test_long_clips_give_several_crops(tmp_path, write_wav):
    samples = write_wav(tmp_path / "clips" / "a.wav", 7.0)
    write_wav(tmp_path / "clips" / "b.wav", 1.0)
    data = open_data(config_of(f"{{kind: folder, path: '{tmp_path / 'clips'}'}}", crop_seconds=2.0, batch_size=4))
    assert data.summary().crops == 4
    (batch,) = take(data, 1)
    assert sorted(batch["key"]) == ["a.wav"] * 3 + ["b.wav"] and sorted(batch["length"].tolist()) == [
        16000,
        *[32000] * 3,
    ]
    windows = np.lib.stride_tricks.sliding_window_view(samples, 32000)
    stretches = set()
    for key, waveform in zip(batch["key"], batch["waveform"], strict=True):
        if key == "a.wav":
            starts = np.flatnonzero(np.abs(windows[:, :8] - waveform[:8].numpy()).max(axis=1) < 1e-4)
            stretches.add(int(starts[0] / (len(samples) / 3)))
    assert stretches == {0, 1, 2}


def test_pad_to_crop(sources):
    (batch,) = take(open_data(config_of(sources["folder"], pad_to_crop=True)), 1)
    assert batch["waveform"].shape == (8, 48000) and set(batch["length"].tolist()) == {48000}


def test_a_mixture_has_its_weights(sources, tmp_path, write_wav):
    write_wav(tmp_path / "clips" / "a.wav")
    other = f"{{kind: folder, path: '{tmp_path / 'clips'}', weight: 3.0}}"
    data = open_data(config_of([sources["shards"], other], batch_size=100, window_clips=1000))
    keys = [key for batch in take(data, 10) for key in batch["key"]]
    assert keys.count("a.wav") == pytest.approx(
        750, abs=60
    )  # windows are of 200: exact in a thousand but for their ends
    assert data.summary().shards == 3


# Held-out audio


def validation(sources, kind="huggingface", **changes) -> DataConfig:
    held_out = SourceConfig(**yaml.safe_load(sources[kind]))
    return config_of(sources["folder"], validation=held_out, test=held_out, **changes)


@pytest.mark.parametrize("changes", [{}, {"batch_seconds": 10.0}, {"crop_seconds": 0.5}, {"num_workers": 2}])
def test_validation_has_every_crop_once(sources, changes):
    data = open_data(validation(sources, **changes))
    batches = list(data.val_dataloader())
    keys = [key for batch in batches for key in batch["key"]]
    if data.config.crop_seconds == 3.0:
        assert len(keys) == len(set(keys)) == CLIPS
    else:
        expected = np.maximum(1, np.floor(data._held_out["validation"].seconds / 0.5 + 1e-6)).astype(int)
        names = [data._held_out["validation"].name(i) for i in range(CLIPS)]
        assert [keys.count(name) for name in names] == expected.tolist()
    assert_equal(list(data.val_dataloader()), batches)
    for batch in batches:
        rows, samples = batch["waveform"].shape
        budget = data.config.batch_seconds or 8 * data.config.crop_seconds
        assert rows * samples / 16000 <= budget + ROUNDING * rows


def test_validation_is_the_same_for_any_seed_and_kind_of_source(sources):
    one = list(open_data(validation(sources), seed=0).val_dataloader())
    assert_equal(list(open_data(validation(sources), seed=1).val_dataloader()), one)


def test_validation_is_shared_by_processes(sources):
    whole = list(open_data(validation(sources)).val_dataloader())
    ranks = [list(open_data(validation(sources), rank=r, world_size=2).val_dataloader()) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    keys = [key for part in ranks for batch in part for key in batch["key"]]
    assert sorted(keys) == sorted(key for batch in whole for key in batch["key"])


def test_without_held_out_audio_there_are_no_loaders(sources):
    data = open_data(config_of(sources["folder"]))
    assert data.val_dataloader() == [] and data.test_dataloader() == []


# Facts and refusals


@pytest.mark.parametrize("kind", KINDS[:3])
def test_facts(sources, kind):
    data = open_data(config_of(sources[kind], crop_seconds=1.0))
    facts, seconds = data.summary(), np.array(data.sources[0].seconds)
    assert facts.num_clips == CLIPS and facts.seconds == pytest.approx(184.71, abs=0.01)
    assert facts.crops == np.maximum(1, np.floor(seconds + 1e-6)).sum()
    assert facts.clips_per_batch == 8.0 and 0.5 < facts.crop_seconds <= 1.0
    assert facts.cache_bytes == pytest.approx(184.71 * 32000, abs=400)
    assert (facts.shards, facts.overlap, facts.bad) == (3 if kind == "shards" else None, 0, 0)


def test_facts_follow_the_settings(sources):
    def facts(**changes):
        return open_data(config_of(sources["folder"], **changes)).summary()

    assert facts(cache_gigabytes=0).cache_bytes == 0
    assert facts(cache_gigabytes=0.001).cache_bytes == 0  # 1 MB does not hold 5.9
    assert facts(pad_to_crop=True).crop_seconds == 3.0
    budget = facts(batch_seconds=12.0)
    assert 0.6 * 12.0 < budget.clips_per_batch * budget.crop_seconds < 1.4 * 12.0


def test_facts_of_a_stream_are_those_known_before_reading(sources):
    facts = open_data(config_of(sources["streaming"])).summary()
    assert (facts.num_clips, facts.crops, facts.seconds, facts.clips_per_batch) == (None, None, None, 8)
    assert open_data(config_of(sources["streaming"], batch_seconds=12.0)).summary().clips_per_batch == 4.0


def test_the_overlap_of_train_and_validation_is_counted(sources, tmp_path, write_wav):
    folder = yaml.safe_load(sources["folder"])["path"]
    (tmp_path / "held_out").mkdir()
    for number in (3, 50, 114):
        shutil.copy(f"{folder}/{number:04}.opus", tmp_path / "held_out" / f"renamed {number}.opus")
    write_wav(tmp_path / "held_out" / "new.wav")
    held_out = SourceConfig(kind="folder", path=str(tmp_path / "held_out"))
    for kind in KINDS[:3]:
        assert open_data(config_of(sources[kind], validation=held_out)).summary().overlap == 3


@pytest.fixture
def partly_bad(tmp_path, write_wav):
    """Six good clips, one without a header, one that does not decode."""
    for number in range(6):
        write_wav(tmp_path / "mixed" / f"{number}.wav", 0.3, seed=number)
    (tmp_path / "mixed" / "text.wav").write_text("text")
    write_wav(tmp_path / "mixed" / "zz.wav", 0.3)
    header = (tmp_path / "mixed" / "zz.wav").read_bytes()
    (tmp_path / "mixed" / "zz.wav").write_bytes(header[:-400] + b"\xff" * 400)  # NaN
    return f"{{kind: folder, path: '{tmp_path / 'mixed'}'}}"


def test_too_many_bad_clips_stop_the_run_in_one_sentence(partly_bad):
    with pytest.raises(UserError, match=r"^2 of 8 clips [^\n]*max_bad_share=0.2 [^\n]*text.wav: [^\n]*$"):
        open_data(config_of(partly_bad, max_bad_share=0.2))
    data = open_data(config_of(partly_bad, max_bad_share=0.25))
    assert {name for name, _ in data.bad} == {"text.wav", "zz.wav"} and data.summary().bad == 2
    assert data.summary().num_clips == 6


def test_bad_clips_that_show_in_decoding_are_replaced_and_listed_in_the_batch(partly_bad):
    data = open_data(config_of(partly_bad, max_bad_share=0.25, cache_gigabytes=0, batch_size=7))
    assert [name for name, _ in data.bad] == ["text.wav"]
    (batch,) = take(data, 1)
    assert len(batch["key"]) == 7 and [name for name, _ in batch["bad"]] == ["zz.wav"]
    assert set(batch["key"]) == {f"{n}.wav" for n in range(6)} and torch.isfinite(batch["waveform"]).all()


def test_no_readable_clip_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("text")
    with pytest.raises(UserError, match="none of the 1 clips"):
        open_data(config_of(f"{{kind: folder, path: '{tmp_path}'}}", max_bad_share=1.0))


def test_a_stream_leaves_bad_rows_out_and_lists_them(tmp_path, encoded):
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = [{"bytes": data, "path": f"{n}.opus"} for n, data in enumerate([b"x", *encoded[:6], b"y"])]
    pq.write_table(pa.table({"audio": audio}), tmp_path / "a.parquet")
    stream = f"{{kind: huggingface, path: '{tmp_path / 'a.parquet'}', streaming: true}}"
    batches = take(open_data(config_of(stream, batch_size=3)), 2)
    assert sorted(key for batch in batches for key in batch["key"]) == [f"{n}.opus" for n in range(1, 7)]
    assert {name for batch in batches for name, _ in batch["bad"]} == {"0.opus", "7.opus"}
    pq.write_table(pa.table({"audio": audio[:1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no readable clip"):
        take(open_data(config_of(stream)), 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kind": "folder", "streaming": True}, "kind=huggingface"),
        ({"weight": 0.0}, "weight=0.0"),
    ],
)
def test_settings_of_a_source_that_contradict_each_other(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        PretrainDataModule(DataConfig(sources=[SourceConfig(path=str(tmp_path), **changes)], batch_size=1))


def test_a_stream_is_not_mixed(sources):
    with pytest.raises(UserError, match="streamed"):
        PretrainDataModule(config_of([sources["streaming"], sources["folder"]]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_of_decoding_is_measured_and_takes_no_longer_than_asked(sources, kind):
    """A window is decoded at most once, and the order of the training is as if nothing had been measured."""
    data = open_data(config_of(sources[kind], cache_gigabytes=0.0))
    start = time.perf_counter()
    rate = data.crops_per_second(0.2)
    assert time.perf_counter() - start < 5.0
    assert rate is None if kind == "streaming" else rate > 1
    assert_equal(take(data, 2), take(open_data(config_of(sources[kind], cache_gigabytes=0.0)), 2))


def test_processors_are_those_that_a_job_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores() == 1
