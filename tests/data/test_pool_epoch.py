"""One epoch of 7,355 real clips, dealt to ranks and workers: each clip once."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest

from src import pack
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.batch import CropDataset
from src.data.pretraining.datamodule import PretrainDataModule
from tests.conftest import SHARED

CLIPS = 7355


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    if not (SHARED / "pool").is_dir():
        pytest.skip(f"{SHARED / 'pool'} is absent")
    folder = tmp_path_factory.mktemp("packed")
    assert pack.main([str(SHARED / "pool"), "--out", str(folder), "--shard-megabytes", "11", "--workers", "1"]) == 0
    return folder


def names_only(self, request):
    """The batch without its sound: which clips come is what counts here."""
    crops = request.crops
    names = [self.sources[source].name(clip) for source, clip in zip(crops.source, crops.clip, strict=True)]
    return {"key": names, "position": request.position}


@pytest.mark.slow
@pytest.mark.parametrize("world_size, workers, batch_size", [(1, 0, 5), (5, 1, 1), (2, 2, 16)])
def test_an_epoch_of_the_pool_has_each_clip_once(packed, monkeypatch, world_size, workers, batch_size):
    """Where the epoch is not a number of whole batches, clips of the next one fill the last batch."""
    monkeypatch.setattr(CropDataset, "__getitem__", names_only)
    steps = -(-CLIPS // (batch_size * world_size))
    ranks = []
    for rank in range(world_size):
        config = DataConfig(
            sources=[SourceConfig(kind="shards", path=f"{packed}/*.tar")], batch_size=batch_size, window_clips=CLIPS,
            crop_seconds=100.0, cache_gigabytes=0, num_workers=workers,
        )  # fmt: skip
        data = PretrainDataModule(config, seed=1)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        data.prepare_data()
        assert data.summary().crops == CLIPS  # no clip is longer than 100 s: a crop each
        ranks.append(list(itertools.islice(data.train_dataloader(), steps)))
    assert len({tuple(batch["position"] for batch in batches) for batches in ranks}) == 1
    seen = Counter(key for batches in ranks for batch in batches for key in batch["key"])
    filled = steps * batch_size * world_size - CLIPS
    assert len(seen) == CLIPS and max(seen.values()) <= 2
    assert sum(count == 2 for count in seen.values()) == filled == (5 if world_size == 2 else 0)
