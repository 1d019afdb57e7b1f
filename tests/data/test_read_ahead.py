"""Crops of long files are decoded once per window; what a batch holds is the same as if each were decoded alone."""

import itertools

import numpy as np
import pytest
import soundfile
import torch

from src.audio.decode import SAMPLE_RATE, AudioError, decode, decode_ranges
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining import sampler
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.pretraining.order import Batching, Crops, Order
from src.data.pretraining.read_ahead import bring_forward, read_ahead
from src.data.pretraining.sampler import OrderSampler
from src.data.sources.folder import FolderSource

LOSSY = {"mp3": 1e-6, "opus": 1e-6}  # largest difference of formats that depend on where reading starts
FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
           "mp3": ("MP3", "MPEG_LAYER_III"), "gsm.wav": ("WAV", "GSM610")}  # fmt: skip
CROPS = [(0.0, 2.0), (0.5, 2.0), (2.5, 0.01), (3.0, 2.0), (3.5, 2.0), (9.0, 2.0), (29.5, 2.0), (40.0, 2.0)]


@pytest.fixture(scope="module")
def folder(long_audio, tmp_path_factory):
    """Thirty seconds in each format."""
    folder = tmp_path_factory.mktemp("long")
    for suffix, (container, codec) in FORMATS.items():
        rate = 48000 if suffix == "opus" else SAMPLE_RATE
        with soundfile.SoundFile(folder / f"a.{suffix}", "w", rate, 1, codec, format=container) as file:
            for second in long_audio[: 30 * rate].split(rate):
                file.write(second.numpy())
    return folder


@pytest.mark.parametrize("suffix", FORMATS)
def test_ranges_of_a_file_are_those_that_are_decoded_alone(folder, suffix):
    """Overlapping, adjacent, with short and long gaps, beyond the end."""
    path = folder / f"a.{suffix}"
    for found, span in zip(decode_ranges(path, CROPS), CROPS, strict=True):
        if span[0] > decode(path).size / SAMPLE_RATE:
            assert str(found) == "no samples" and isinstance(found, AudioError)
            continue
        np.testing.assert_allclose(found, decode(path, *span), rtol=0, atol=LOSSY.get(suffix, 0.0))


def test_joined_damaged_and_missing_files(folder, tmp_path):
    ogg = (folder / "a.ogg").read_bytes()
    for found, span in zip(decode_ranges(ogg + ogg, CROPS[:6]), CROPS, strict=False):
        np.testing.assert_array_equal(found, decode(ogg + ogg, *span))
    (tmp_path / "cut.flac").write_bytes((folder / "a.flac").read_bytes()[:100_000])
    found = decode_ranges(tmp_path / "cut.flac", CROPS[:7])
    assert not isinstance(found[0], AudioError) and "damaged" in str(found[6])
    assert all("no such file" in str(each).lower() for each in decode_ranges(tmp_path / "none.wav", CROPS))


def crops(clips, starts):
    zeros = np.zeros(len(clips), int)
    return Crops(zeros, np.array(clips), np.array(starts, float), np.full(len(clips), 2.0), zeros)


def test_each_crop_is_decoded_once_and_no_more_is_kept_than_may_be():
    random = np.random.default_rng(0)
    batches = [crops(random.integers(0, 5, 8), random.uniform(0, 90, 8)) for _ in range(20)]
    every = {(int(b.clip[i]), b.start_seconds[i]) for b in batches for i in range(8)}
    for most_seconds in (0.0, 20.0, 1e9):
        groups, kept, decoded = read_ahead(0, batches, 0, most_seconds), set(), []
        for batch, mine in zip(batches, groups, strict=True):
            for group in mine:
                assert group.wanted == set(group.ranges) and group.ranges == sorted(group.ranges)
                decoded += [(group.clip, start) for start, _ in group.ranges]
                kept |= {(group.clip, start) for start, _ in group.ranges}
            kept -= {(int(batch.clip[i]), batch.start_seconds[i]) for i in range(8)}
            assert 2.0 * len(kept) <= most_seconds
        assert len(decoded) == len(set(decoded))
        if most_seconds == 1e9:
            assert set(decoded) == every and sum(map(len, groups)) == 5


def test_what_is_decoded_together_is_the_same_after_a_resume():
    random = np.random.default_rng(0)
    batches = [crops(random.integers(0, 5, 8), random.uniform(0, 90, 8)) for _ in range(20)]
    whole, resumed = read_ahead(0, batches, 0, 30.0), read_ahead(0, batches, 7, 30.0)
    ranges = [(group.clip, group.ranges) for mine in whole for group in mine]
    assert not any(resumed[:7]) and all((group.clip, group.ranges) in ranges for mine in resumed for group in mine)
    left = {(int(b.clip[i]), b.start_seconds[i]) for b in batches[7:] for i in range(8)}
    for mine in resumed:
        assert all((group.clip, start) in left for group in mine for start, _ in group.wanted)


@pytest.mark.parametrize("most_seconds", [0.0, 100.0, 1e9])
def test_what_is_brought_forward_is_spread_evenly_and_comes_in_the_order_of_need(most_seconds):
    random = np.random.default_rng(0)
    batches = [crops(random.integers(0, 40, 8), random.uniform(0, 90, 8)) for _ in range(60)]
    groups = read_ahead(0, batches, 0, 1e9)
    early, late = bring_forward(groups, 10, most_seconds)
    assert [group for mine in [*early, *late] for group in mine] == [group for mine in groups for group in mine]
    seconds = [sum(2.0 * len(group.wanted) for group in mine) for mine in early]
    assert sum(seconds) <= most_seconds
    assert max(seconds) - min(seconds) <= 2 * max(2.0 * len(group.wanted) for mine in groups for group in mine)
    assert bring_forward(groups, 0, most_seconds) == ([], groups)


@pytest.mark.parametrize(("workers", "position"), [(1, 0), (3, 0), (3, 1234)])
@pytest.mark.parametrize("most_seconds", [200.0, 1e9])
def test_after_the_first_window_each_batch_decodes_about_as_much(workers, position, most_seconds, monkeypatch):
    """As a loader would, each worker decodes what comes with its requests: a crop once, and never much in one batch."""
    monkeypatch.setattr(sampler, "_AHEAD_BYTES", most_seconds * workers * 4 * SAMPLE_RATE)
    order = Order([np.full(40, 90.9)], [1.0], 2.0, 1000, seed=0)
    requests = iter(OrderSampler(order, Batching(1, 20, None), 0, position, workers, decoding=True))
    kept, decoded, found = [{} for _ in range(workers)], [], set()
    for number, request in enumerate(itertools.islice(requests, 200)):
        mine, seconds = kept[number % workers], 0.0
        for group in request.groups:
            mine.update(((group.window, group.clip, span), None) for span in group.wanted)
            seconds += sum(length for _, length in group.ranges)
        crops = request.crops
        for clip, span in zip(crops.clip.tolist(), zip(crops.start_seconds, crops.seconds, strict=True), strict=True):
            key = (request.window, clip, span)
            assert key not in found
            found.add(key)
            seconds += span[1] if mine.pop(key, found) is found else 0.0
        assert sum(span[1] for _, _, span in mine) <= 2 * most_seconds, number
        decoded.append(seconds)
    assert np.sum(decoded[50:]) == pytest.approx(40.0 * 150, rel=0.05)
    assert max(decoded[50:]) <= 40.0 + 2 * 90.0  # seconds of a batch, and of two clips; of all clips: 3600


def batches_of(folder, position=0, count=6, **settings):
    config = DataConfig(sources=[SourceConfig(kind="folder", path=str(folder))], crop_seconds=1.0, batch_size=10,
                        cache_gigabytes=0.0, window_clips=60, **settings)  # fmt: skip
    data = PretrainDataModule(config)
    data.setup()
    data.position = position
    return list(itertools.islice(data.train_dataloader(), count))


def test_a_window_opens_each_file_once(folder, monkeypatch):
    opened = []
    read = FolderSource._read
    monkeypatch.setattr(FolderSource, "_read", lambda self, i: opened.append(i) or read(self, i))
    batches_of(folder)
    assert len(opened) <= 3 * len(FORMATS)  # for its header, a check of its sound, and the crops: 60


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_crops_decoded_alone_also_after_a_resume(folder, monkeypatch, workers):
    together = batches_of(folder, num_workers=workers)
    resumed = batches_of(folder, 30, count=3, num_workers=workers)
    for batch, again in zip(together[3:], resumed, strict=True):
        assert torch.equal(batch["waveform"], again["waveform"]) and batch["key"] == again["key"]
    monkeypatch.setattr(sampler, "_AHEAD_BYTES", 0)
    for batch, alone in zip(together, batches_of(folder), strict=True):
        assert batch["key"] == alone["key"]
        torch.testing.assert_close(batch["waveform"], alone["waveform"], rtol=0, atol=max(LOSSY.values()))
