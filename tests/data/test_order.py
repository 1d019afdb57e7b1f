"""The order of crops: every one once an epoch, the same whoever asks and wherever one begins."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.audio.decode import probe
from src.data.pretraining.order import Batching, Crops, Order, crops_of, eval_batches, make_batches, permute, uniform
from src.data.pretraining.sampler import OrderSampler

SAMPLE = 1 / 16000
ROUNDING = 0.01  # seconds: lengths are sorted in steps of this

lengths = st.lists(st.floats(0.05, 30.0), min_size=1, max_size=300).map(np.array)
keys = st.integers(0, 2**64 - 1)


def order_of(*seconds, weights=None, crop_seconds=2.0, window=64, seed=0):
    return Order(list(seconds), weights or [1.0] * len(seconds), crop_seconds, window, seed)


def numbers(crops: Crops, seconds: np.ndarray, crop_seconds: float) -> np.ndarray:
    """Which stretch of its clip each crop comes from."""
    stretch = seconds[crops.clip] / crops_of(seconds, crop_seconds)[crops.clip]
    return np.floor(crops.start_seconds / stretch + 1e-9).astype(int)


def rows(crops: Crops) -> list[tuple]:
    columns = (crops.source, crops.clip, crops.start_seconds, crops.seconds, crops.seed)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def requests(order, batching, rank=0, position=0, count=10):
    return list(itertools.islice(OrderSampler(order, batching, rank, position), count))


@given(st.integers(1, 3000), keys)
@settings(max_examples=40)
def test_permute_is_a_bijection(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.integers(2**20, 2**45), keys)
@settings(max_examples=20)
def test_permute_of_a_large_range_repeats_nothing_and_stays_inside(size, key):
    some = np.unique(np.linspace(0, size - 1, 1000).astype(np.int64))
    permuted = permute(some, size, key)
    assert len(np.unique(permuted)) == len(some) and permuted.min() >= 0 and permuted.max() < size


def test_permute_mixes():
    permuted = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(permuted, np.arange(10_000))[0, 1]) < 0.05
    assert (permuted == np.arange(10_000)).mean() < 0.01
    assert not np.array_equal(permuted, permute(np.arange(10_000), 10_000, 2))


@given(lengths, st.floats(0.5, 10.0), st.integers(0, 5), st.integers(0, 2**31))
@settings(max_examples=40)
def test_an_epoch_has_every_crop_once(seconds, crop_seconds, epoch, seed):
    order = order_of(seconds, crop_seconds=crop_seconds, seed=seed)
    count = crops_of(seconds, crop_seconds)
    assert order.num_crops == count.sum()
    crops = order.crops(np.arange(epoch * order.num_crops, (epoch + 1) * order.num_crops))
    found = sorted(zip(crops.clip.tolist(), numbers(crops, seconds, crop_seconds).tolist(), strict=True))
    assert found == [(clip, number) for clip in range(len(seconds)) for number in range(count[clip])]


@given(st.lists(lengths, min_size=2, max_size=4), st.data())
@settings(max_examples=20)
def test_each_source_of_a_mixture_has_every_crop_once(sources, data):
    weights = data.draw(st.lists(st.floats(0.5, 4.0), min_size=len(sources), max_size=len(sources)))
    order = order_of(*sources, weights=weights)
    crops = order.crops(np.arange(5000))
    for number, seconds in enumerate(sources):
        of_source = crops.take(np.flatnonzero(crops.source == number))
        size = int(crops_of(seconds, 2.0).sum())
        for start in range(0, len(of_source) - size + 1, size):
            epoch = of_source.take(np.arange(start, start + size))
            places = set(zip(epoch.clip.tolist(), numbers(epoch, seconds, 2.0).tolist(), strict=True))
            assert len(places) == size


def test_with_replacement_each_crop_is_as_likely_and_no_two_draws_are_cut_alike():
    seconds = np.random.default_rng(0).uniform(0.5, 9.0, 500)
    order = Order([seconds], [1.0], 2.0, 64, 0, resample=True)
    crops = order.crops(np.arange(200 * order.num_crops))
    drawn = np.bincount(crops.clip, minlength=500) / crops_of(seconds, 2.0)
    assert drawn.min() > 100 and drawn.max() < 300 and abs(drawn.mean() - 200) < 3
    epoch = order.crops(np.arange(order.num_crops))
    assert len(np.unique(epoch.clip)) < 0.8 * 500  # an epoch leaves some out
    assert len(np.unique(crops.seed)) == len(crops)
    assert rows(order.crops(np.arange(5000, 5100))) == rows(crops.take(np.arange(5000, 5100)))


@given(lengths, st.floats(0.5, 10.0), st.integers(0, 2**31))
@settings(max_examples=40)
def test_a_crop_lies_inside_its_clip_and_its_stretch(seconds, crop_seconds, seed):
    crops = order_of(seconds, crop_seconds=crop_seconds, seed=seed).crops(np.arange(500))
    length = seconds[crops.clip]
    count = crops_of(seconds, crop_seconds)[crops.clip]
    end = crops.start_seconds + crops.seconds
    assert (crops.start_seconds >= 0).all() and (end <= length + SAMPLE).all()
    np.testing.assert_allclose(crops.seconds, np.minimum(length, crop_seconds))
    stretch = length / count
    number = numbers(crops, seconds, crop_seconds)
    assert (number < count).all() and (end <= (number + 1) * stretch + SAMPLE).all()


def test_seeds_and_epochs_differ_and_the_same_seed_does_not():
    seconds = np.full(10_000, 5.0)
    first = order_of(seconds, seed=0)
    epoch = np.arange(first.num_crops)
    assert rows(first.crops(epoch)) == rows(order_of(seconds, seed=0).crops(epoch))
    again, other = first.crops(epoch + first.num_crops), order_of(seconds, seed=1).crops(epoch)
    for crops in (again, other):
        assert (crops.clip == first.crops(epoch).clip).mean() < 0.05
        assert not np.intersect1d(crops.seed, first.crops(epoch).seed).size
        assert not np.intersect1d(crops.start_seconds % 2.5, first.crops(epoch).start_seconds % 2.5).size


def test_starts_are_uniform_in_the_stretch():
    crops = order_of(np.full(4000, 3.0)).crops(np.arange(4000))
    counts, _ = np.histogram(crops.start_seconds, 10, (0.0, 1.0))
    assert counts.sum() == 4000 and np.abs(counts - 400).max() < 100  # five standard deviations


def test_purposes_of_a_seed_are_independent():
    seeds = order_of(np.full(4000, 1.0)).crops(np.arange(4000)).seed
    assert abs(np.corrcoef(uniform(seeds, 1), uniform(seeds, 2))[0, 1]) < 0.08  # five standard deviations


@pytest.mark.parametrize("weights, slots", [([1, 3], [250, 750]), ([1, 1, 1], [334, 333, 333]), ([999, 1], [999, 1])])
def test_shares_of_a_mixture_are_exact_in_every_thousand(weights, slots):
    seconds = [np.full(n, 1.0) for n in (7, 1300, 40)[: len(weights)]]
    order = order_of(*seconds, weights=weights)
    for thousand in (0, 1, 1000):
        crops = order.crops(np.arange(1000 * thousand, 1000 * (thousand + 1)))
        assert sorted(np.bincount(crops.source).tolist()) == sorted(slots)
        assert abs(np.bincount(crops.source) - np.array(weights) / sum(weights) * 1000).max() < 1
    if weights == [1, 3]:  # evenly spread
        assert {25} == set((crops.source == 0).reshape(10, 100).sum(axis=1).tolist())


BATCHINGS = {"clips": Batching(1, 8, None), "seconds": Batching(1, None, 20.0), "two processes": Batching(2, 4, None)}


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS)
def test_a_jump_to_a_batch_goes_on_as_if_one_had_come_from_the_start(batching):
    order = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 70))
    whole = requests(order, batching, count=40)
    assert whole[-1].position > 2 * order.window_size(batching)
    for done in range(39):
        following = requests(order, batching, position=whole[done].position, count=2)
        expected = whole[done + 1 : done + 3]
        assert [(rows(r.crops), r.position) for r in following[: len(expected)]] == [
            (rows(r.crops), r.position) for r in expected
        ]


def test_a_position_within_a_batch_goes_on_with_the_next():
    order, batching = order_of(np.full(64, 1.0)), Batching(1, 8, None)
    whole = requests(order, batching, count=3)
    assert rows(requests(order, batching, position=9, count=1)[0].crops) == rows(whole[2].crops)


def test_a_window_holds_the_crops_of_its_positions():
    order, batching = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 70)), Batching(1, None, 20.0)
    size, found = order.window_size(batching), []
    for request in OrderSampler(order, batching, 0, 0):
        if request.position > 3 * size:
            break
        found += rows(request.crops)
    assert sorted(found) == sorted(rows(order.crops(np.arange(3 * size))))


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_has_the_same_global_batches(world_size):
    order = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 70), np.random.default_rng(1).uniform(0.2, 9.0, 30))
    one = requests(order, Batching(1, 16, None), count=20)
    ranks = [
        requests(order, Batching(world_size, 16 // world_size, None), rank, count=20) for rank in range(world_size)
    ]
    for expected, parts in zip(one, zip(*ranks, strict=True), strict=True):
        assert {len(part.crops) for part in parts} == {16 // world_size}
        assert sorted(row for part in parts for row in rows(part.crops)) == sorted(rows(expected.crops))
        assert {part.position for part in parts} == {expected.position}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_keep_their_budget_of_seconds(world_size):
    order = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 300), crop_seconds=8.0, window=256)
    ranks = [requests(order, Batching(world_size, None, 30.0), rank, count=60) for rank in range(world_size)]
    for parts in zip(*ranks, strict=True):
        assert len({len(part.crops) for part in parts}) == 1
        assert len({part.position for part in parts}) == 1
        for part in parts:
            padded = len(part.crops) * part.crops.seconds.max()
            assert padded <= 30.0 + ROUNDING * len(part.crops)
    used = sum(len(p.crops) * p.crops.seconds.max() for p in ranks[0]) / (60 * 30.0)
    assert used > 0.75  # the budget is used, too


def test_a_clip_longer_than_the_budget_is_a_batch_of_its_own():
    for request in requests(order_of(np.full(10, 8.0), crop_seconds=8.0), Batching(1, None, 5.0), count=12):
        assert len(request.crops) == 1


def waste(order, batching):
    batches = [request.crops.seconds for request in requests(order, batching, count=60)]
    return sum(len(b) * b.max() for b in batches) / sum(b.sum() for b in batches) - 1


def test_sorting_by_length_saves_padding(encoded):
    seconds = np.array([probe(clip).seconds for clip in encoded])
    unsorted_ = waste(order_of(seconds, crop_seconds=10.0, window=8), Batching(1, 8, None))  # a batch is a window
    assert waste(order_of(seconds, crop_seconds=10.0, window=4096), Batching(1, 8, None)) < 0.25 * unsorted_


def test_batches_come_in_no_order_of_length():
    order = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 400), crop_seconds=10.0, window=400)
    longest = [request.crops.seconds.max() for request in requests(order, Batching(1, 8, None), count=50)]
    assert abs(np.corrcoef(longest, np.arange(50))[0, 1]) < 0.5
    assert np.sum(np.diff(longest) < 0) > 10


def test_ten_million_clips_cost_a_window_little():
    seconds = np.random.default_rng(0).uniform(0.5, 30.0, 10_000_000)
    order, batching = order_of(seconds, crop_seconds=10.0, window=4096), Batching(1, 64, None)
    tracemalloc.start()
    try:
        batches = requests(order, batching, position=64 * 123_456, count=64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"  # the lengths alone are 80 MB
    clips = np.concatenate([request.crops.clip for request in batches])
    assert clips.max() < 10_000_000 and len(np.unique(clips)) > 2000
    # neighbours stay together: a window reads few places of a shard, but not one
    assert 40 <= len(np.unique(clips // 64)) <= 400


@given(st.integers(1, 60), st.integers(1, 5), st.sampled_from([None, 3, 8]), st.floats(2.0, 40.0))
@settings(max_examples=60)
def test_held_out_crops_are_shared_out_once(count, world_size, most_clips, most_seconds):
    seconds = np.sort(np.random.default_rng(count).uniform(0.2, 9.0, count))
    crops = Crops(np.zeros(count, int), np.arange(count), np.zeros(count), seconds, np.arange(count))
    ranks = [eval_batches(crops, most_clips, most_seconds, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    clips = [int(clip) for batches in ranks for batch in batches for clip in batch.clip]
    assert set(clips) == set(range(count)) and len(clips) == max(count, world_size)
    for parts in zip(*ranks, strict=True):
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_arrange_is_a_pure_function_of_its_key():
    crops = order_of(np.random.default_rng(0).uniform(0.2, 9.0, 70)).crops(np.arange(64))
    batching = Batching(1, 8, None)
    first, again, other = (list(map(rows, make_batches(crops, batching, key))) for key in (5, 5, 6))
    assert first == again and first != other
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*other))
