"""From a request to a batch: what is in it, and what stands in for a clip that cannot be read."""

import numpy as np
import pytest
import torch

from src.audio.decode import AudioError
from src.data.pad import pad
from src.data.pretraining.batch import BatchRequest, CropDataset
from src.data.pretraining.order import Crops
from src.data.sources.source import Source
from src.errors import UserError

FLOAT = 1e-6  # relative


class Clips(Source):
    """Clips from memory; None is one whose header is fine but whose samples are not."""

    def __init__(self, waveforms):
        self.waveforms = waveforms
        self._kept = np.arange(len(waveforms))
        self.seconds = np.array([1.0 if w is None else len(w) / 16000 for w in waveforms])

    def waveform(self, i, start_seconds=0.0, seconds=None):
        if self.waveforms[i] is None:
            raise AudioError("damaged data")
        begin = round(start_seconds * 16000)
        return self.waveforms[i][begin : None if seconds is None else begin + round(seconds * 16000)]

    def _name(self, i):
        return f"clip {i}"


def noise(*seconds):
    random = np.random.default_rng(0)
    return [random.uniform(-0.5, 0.5, round(s * 16000)).astype(np.float32) for s in seconds]


def request(clips, seconds, start=None, source=None, seed=0):
    count = len(clips)
    seeds = np.random.default_rng(seed).integers(0, 2**62, count)
    crops = Crops(
        np.array(source if source is not None else [0] * count),
        np.array(clips),
        np.array(start if start is not None else [0.0] * count),
        np.array(seconds, dtype=float),
        seeds,
    )
    return BatchRequest(crops, 77)


def test_a_batch_holds_the_crops_asked_for_padded_with_zeros():
    waveforms = noise(1.0, 0.5, 0.25)
    asked = request([0, 2, 1], [0.5, 0.25, 0.3], [0.25, 0.0, 0.1])
    batch = CropDataset([Clips(waveforms)])[asked]
    assert set(batch) == {"waveform", "length", "samples", "seed", "source", "key", "position", "bad"}
    assert batch["waveform"].shape == (3, 8000) and batch["waveform"].dtype == torch.float32
    assert batch["length"].tolist() == batch["samples"] == [8000, 4000, 4800]
    expected = (waveforms[0][4000:12000], waveforms[2], waveforms[1][1600:6400])
    for row, samples in enumerate(expected):
        np.testing.assert_array_equal(batch["waveform"][row, : len(samples)], samples)
        assert not batch["waveform"][row, len(samples) :].any()
    assert batch["key"] == ["clip 0", "clip 2", "clip 1"]
    assert batch["seed"].dtype == torch.int64 and batch["seed"].tolist() == asked.crops.seed.tolist()
    assert (batch["position"], batch["bad"]) == (77, [])


def test_crops_come_from_their_source():
    one, other = noise(0.5), noise(0.6)
    batch = CropDataset([Clips(one), Clips(other)])[request([0, 0], [0.6, 0.5], source=[1, 0])]
    assert batch["length"].tolist() == [9600, 8000]


def test_pad_to_crop_makes_every_row_as_long_and_all_of_it_sound():
    waveforms = noise(0.5, 1.5)
    batch = CropDataset([Clips(waveforms)], pad_seconds=1.0)[request([0, 1], [0.5, 1.0])]
    assert batch["waveform"].shape == (2, 16000) and batch["length"].tolist() == [16000, 16000]
    np.testing.assert_array_equal(batch["waveform"][0, :8000], waveforms[0])
    assert not batch["waveform"][0, 8000:].any()
    np.testing.assert_array_equal(batch["waveform"][1], waveforms[1][:16000])


def test_pad_of_one_clip_adds_nothing():
    (clip,) = map(torch.from_numpy, noise(0.3))
    padded = pad([clip])
    assert torch.equal(padded["waveform"][0], clip) and padded["length"].tolist() == [4800]


def test_gain_changes_the_level_within_its_bounds_and_nothing_else():
    source = Clips(noise(*[0.05] * 200))
    asked = request(list(range(200)), [0.05] * 200)
    plain = CropDataset([source])[asked]["waveform"]
    loud = CropDataset([source], gain_db=6.0)[asked]["waveform"]
    gain_db = 20 * torch.log10(loud.norm(dim=1) / plain.norm(dim=1))
    torch.testing.assert_close(loud, plain * 10 ** (gain_db[:, None] / 20), rtol=1e-4, atol=0)
    assert gain_db.abs().max() <= 6.0 + 1e-4
    counts = torch.histc(gain_db, 4, -6.0, 6.0)
    assert counts.min() > 25  # uniform in dB: 50 each, standard deviation 6
    double = CropDataset([source], gain_db=12.0)[asked]["waveform"]
    twice_db = 20 * torch.log10(double.norm(dim=1) / plain.norm(dim=1))
    torch.testing.assert_close(twice_db, 2 * gain_db, rtol=0, atol=1e-3)


def test_gain_hangs_on_the_crop_alone():
    source = Clips(noise(0.1, 0.1, 0.1))
    batches, asked = CropDataset([source], gain_db=6.0), request([0, 1, 2], [0.1] * 3)
    first, again = batches[asked]["waveform"], batches[asked]["waveform"]
    assert torch.equal(first, again)
    alone = batches[BatchRequest(asked.crops.take(np.array([2])), 0)]["waveform"]
    assert torch.equal(alone[0], first[2])
    assert not torch.equal(batches[request([0, 1, 2], [0.1] * 3, seed=1)]["waveform"], first)


def test_the_next_readable_clip_stands_in_and_the_bad_ones_are_listed():
    waveforms = [None, *noise(0.5), None, None]
    asked = request([2, 1], [0.3, 0.3], [0.2, 0.1])
    batch = CropDataset([Clips(waveforms)])[asked]
    assert batch["key"] == ["clip 1", "clip 1"]
    assert batch["bad"] == [("clip 2", "damaged data"), ("clip 3", "damaged data"), ("clip 0", "damaged data")]
    np.testing.assert_array_equal(batch["waveform"][0, :4800], waveforms[1][:4800])  # from its beginning
    np.testing.assert_array_equal(batch["waveform"][1, :4800], waveforms[1][1600:6400])


def test_a_clip_that_stands_in_is_not_longer_than_what_was_asked_for():
    batch = CropDataset([Clips([None, *noise(3.0)])])[request([0], [0.3])]
    assert batch["length"].tolist() == [4800]


def test_a_source_without_a_readable_clip_ends_in_an_error():
    with pytest.raises(AudioError, match=r"3 clips in a row .*clip 2: damaged"):
        CropDataset([Clips([None] * 3)])[request([0], [0.3])]


def test_outside_training_a_clip_that_cannot_be_read_is_left_out_and_nothing_stands_in():
    waveforms = [*noise(0.5), None, *noise(0.4)]
    asked = request([0, 1, 2], [0.3] * 3)
    batch = CropDataset([Clips(waveforms)], replace_bad=False)[asked]
    assert batch["key"] == ["clip 0", "clip 2"] and batch["bad"] == [("clip 1", "damaged data")]
    assert batch["seed"].tolist() == asked.crops.seed[[0, 2]].tolist() and batch["length"].tolist() == [4800, 4800]
    with pytest.raises(UserError, match=r"none of the clips .*clip 1: damaged"):
        CropDataset([Clips(waveforms)], replace_bad=False)[request([1], [0.3])]


def test_of_a_stream_the_clips_come_with_the_request(encoded):
    from src.audio.decode import decode

    plain = request([1, 0, 2], [0.1] * 3, [0.05, 0.0, 0.0])
    clips = [("a", encoded[0]), ("b", encoded[1]), ("broken", b"x")]
    batch = CropDataset([])[plain._replace(encoded=clips, bad=(("earlier", "no sound"),))]
    assert batch["key"] == ["b", "a", "a"]
    np.testing.assert_array_equal(batch["waveform"][0], decode(encoded[1], 0.05, 0.1))
    assert [name for name, _ in batch["bad"]] == ["earlier", "broken"]
