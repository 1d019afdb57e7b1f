"""Unlabelled audio as a LightningDataModule: combines sources, cache, crop order and batches."""

import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch.distributed as dist
from torch.utils.data import DataLoader

from src.audio.decode import AudioError, Encoded, decode
from src.audio.levels import warn_of_oddities
from src.config.settings import DataConfig, SourceConfig
from src.data.cache import CachedSource, cache_bytes
from src.data.odd_sound import spread_clips, warn_of_some
from src.data.overlap import count_overlap
from src.data.pretraining.batch import BatchRequest, CropDataset
from src.data.pretraining.order import Batching, Order, eval_batches, hash_integers, make_batches
from src.data.pretraining.sampler import OrderSampler, StreamSampler
from src.data.sources.audio_column import encoded_clip
from src.data.sources.hub import load_hub
from src.data.sources.open import open_source
from src.data.sources.source import Source
from src.data.workers import loader_settings
from src.errors import UserError

_MAX_MEASURED = 32  # crops of one clip


@dataclass(frozen=True)
class DataSummary:
    """What the plan of a run needs to know of the training data, over all sources.

    num_clips, crops (per epoch), seconds (of audio): None for a stream, whose length is unknown.
    crop_seconds: mean length of a batch row, padding included. clips_per_batch: mean, in one process.
    heard_seconds: mean length of a crop, without padding; None for a stream.
    shards: number of tar files, None if there are none; missing_shards: those left out.
    overlap: validation clips that are also in train. bad: unreadable clips.
    """

    num_clips: int | None
    crops: int | None
    seconds: float | None
    crop_seconds: float
    clips_per_batch: float
    cache_bytes: int
    shards: int | None
    overlap: int
    bad: int
    missing_shards: int = 0
    heard_seconds: float | None = None


class PretrainDataModule(L.LightningDataModule):
    """Batches of waveforms (contents: `src.data.pretraining.batch.CropDataset`), endless for training.

    Args:
        overfit: restart from the first batch in every epoch.

    Attributes:
        bad: (name, reason) of clips left out.
    """

    def __init__(self, config: DataConfig, seed: int = 0, overfit: bool = False) -> None:
        super().__init__()
        self.config, self.seed, self.overfit, self._position = config, seed, overfit, 0
        self.sources: list[Source] = []
        self.bad: list[tuple[str, str]] = []
        self._held_out: dict[str, Source] = {}
        self._sampler: OrderSampler | StreamSampler | None = None
        self._stream_state: dict[str, Any] | None = None
        self._opened = False
        self._clips_per_batch: float | None = None
        self.streaming = any(source.streaming for source in config.sources)
        if self.streaming and len(config.sources) > 1:
            raise UserError(
                "data.sources: a streamed source cannot be mixed with others; set streaming=false or use it alone"
            )
        _check_sources(config.sources)

    @property
    def position(self) -> int:
        """Crops consumed; the LightningModule sets it from the batch it trains on. With the seed it is the whole state,
        except for streams: they add their state at the start of the current window."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        self._position = position
        if self._sampler is not None and not self.overfit:
            self._sampler.position = position  # so that the next epoch continues after one limited to some batches

    def prepare_data(self) -> None:
        """Scan headers and fill the decoded cache, in one process per node."""
        self._open()

    def setup(self, stage: str | None = None) -> None:
        self._open()

    def _open(self) -> None:
        if self._opened:
            return
        opened = [] if self.streaming else [open_source(source) for source in self.config.sources]
        held_out = {
            name: open_source(config) for name in ("validation", "test") if (config := getattr(self.config, name))
        }
        fits = sum(map(cache_bytes, [*opened, *held_out.values()])) <= self.config.cache_gigabytes * 1e9
        self.sources = [CachedSource(source) for source in opened] if fits else opened
        self.cached = fits and bool(opened)
        self.bad = [entry for source in self.sources for entry in source.bad]
        for config, opened_source in zip(self.config.sources, opened, strict=False):  # none for a stream
            _check_shards(config, opened_source, self.config.max_bad_share)
        total = sum(map(len, self.sources)) + len(self.bad)
        if len(self.bad) > self.config.max_bad_share * total:
            examples = "; ".join(f"{name}: {reason}" for name, reason in self.bad[:3])
            raise UserError(
                f"{len(self.bad)} of {total} clips cannot be read, more than data.max_bad_share="
                f"{self.config.max_bad_share} ({examples}); fix them or raise the share"
            )
        self._held_out = {name: CachedSource(source, store=fits) for name, source in held_out.items()}
        self.bad += [entry for source in self._held_out.values() for entry in source.bad]
        for source in [*self.sources, *self._held_out.values()]:
            if isinstance(source, CachedSource):
                warn_of_oddities(source.odd)
            else:
                warn_of_some(spread_clips(source))
        if self.streaming:
            warn_of_some(stream_clips(self.config.sources[0]))
        for config, opened_source in zip(self.config.sources, self.sources, strict=False):  # none for a stream
            _check_readable(config, opened_source)
        for name, opened_source in self._held_out.items():
            _check_readable(getattr(self.config, name), opened_source)
        self._opened = True

    def train_dataloader(self) -> DataLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        _check_same_on_all_ranks([source.fingerprint for source in self.sources])
        if self.streaming:
            self._sampler = self._stream_sampler(rank, world_size)
        else:
            position = 0 if self.overfit else self.position
            self._sampler = OrderSampler(
                self._order(), self._batching(world_size), rank, position, self.config.num_workers, not self.cached
            )
        pad_seconds = self.config.crop_seconds if self.config.pad_to_crop else None
        return self._loader(CropDataset(self.sources, pad_seconds, self.config.gain_db), self._sampler)

    def val_dataloader(self) -> DataLoader | list:
        return self._held_out_loader("validation", self.config.crop_seconds)

    def test_dataloader(self) -> DataLoader | list:
        return self._held_out_loader("test", self.config.crop_seconds)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"seed": self.seed, "position": self.position, "streams": None}
        state["sources"] = [source.fingerprint for source in self.sources]
        if isinstance(self._sampler, StreamSampler):
            mine = {"position": self.position, "window": self._sampler.state_at(self.position)}
            state["streams"] = [mine]
            if dist.is_available() and dist.is_initialized():
                state["streams"] = [None] * dist.get_world_size()
                dist.all_gather_object(state["streams"], mine)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position, self.seed = state_dict["position"], state_dict["seed"]
        if state_dict["sources"] != [source.fingerprint for source in self.sources]:
            warnings.warn(
                "the clips of data.sources are not those of the checkpoint (other paths, files or modification "
                "times): the run continues with them, but not exactly",
                stacklevel=2,
            )
        streams = state_dict["streams"]
        if streams is not None:
            rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            if len(streams) != world_size:
                raise UserError(
                    f"the stream was read by {len(streams)} processes and resumes only with as many, not {world_size}"
                )
            self.position, self._stream_state = streams[rank]["position"], streams[rank]["window"]

    @property
    def clips_per_batch(self) -> float:
        """Mean, in one process; call after `setup`."""
        if self._clips_per_batch is None:
            self._clips_per_batch = self.summary().clips_per_batch
        return self._clips_per_batch

    def examples(self, number: int) -> list[np.ndarray]:
        """The first crops of the training data, (T,) each, at 16 kHz; the same on every call."""
        if self.streaming:
            config = self.config.sources[0]
            clips = itertools.islice(open_stream(config, 0, 1), number)
            seconds = self.config.crop_seconds
            return [decode(encoded_clip(row[config.audio_column]), 0.0, seconds) for row in clips]
        order = self._order()
        batch = CropDataset(self.sources)[BatchRequest(order.crops(np.arange(min(number, order.num_crops))), 0)]
        pairs = zip(batch["waveform"], batch["length"].tolist(), strict=True)
        return [waveform[:length].numpy() for waveform, length in pairs]

    def summary(self) -> DataSummary:
        """Call after `setup`."""
        config = self.config
        if self.streaming:
            clips = config.batch_size or config.batch_seconds / config.crop_seconds  # type: ignore[operator]
            return DataSummary(None, None, None, config.crop_seconds, clips, 0, None, 0, 0)
        order, batching = self._order(), self._batching(1)
        window = order.crops(np.arange(order.window_size(batching)))
        batches = make_batches(window, batching, 0)
        rows = np.concatenate([np.full(len(batch), batch.seconds.max()) for batch in batches])
        held_out = self._held_out.get("validation")
        shards = [source.shards for source in self.sources if source.shards is not None]
        self._clips_per_batch = len(window) / len(batches)
        return DataSummary(
            num_clips=sum(map(len, self.sources)),
            crops=order.num_crops,
            seconds=float(sum(source.seconds.sum() for source in self.sources)),
            crop_seconds=config.crop_seconds if config.pad_to_crop else float(rows.mean()),
            clips_per_batch=self._clips_per_batch,
            cache_bytes=sum(map(cache_bytes, [*self.sources, *self._held_out.values()])) if self.cached else 0,
            shards=sum(shards) if shards else None,
            overlap=count_overlap(held_out, self.sources) if held_out is not None else 0,
            bad=sum(len(source.bad) for source in self.sources),
            missing_shards=sum(len(source.missing) for source in self.sources),
            heard_seconds=float(window.seconds.mean()),
        )

    def crops_per_second(self, seconds: float = 1.0) -> float | None:
        """That one worker decodes of the training data, measured for about so long; None for a stream, or if no crop
        could be read. Call after `setup`."""
        if self.streaming:
            return None
        order = self._order()
        crops = order.crops(np.arange(order.window_size(self._batching(1))))
        clips, first = np.unique(np.stack([crops.source, crops.clip]), axis=1, return_index=True)
        count, start = 0, time.perf_counter()
        for number in np.argsort(crops.seed[first]).tolist():  # as those of a window: shuffled, together if of one clip
            source, clip = clips[:, number].tolist()
            rows = np.flatnonzero((crops.source == source) & (crops.clip == clip))
            spans = sorted(zip(crops.start_seconds[rows].tolist(), crops.seconds[rows].tolist(), strict=True))
            found = self.sources[source].crops(clip, spans[:_MAX_MEASURED])
            count += sum(not isinstance(each, AudioError) for each in found)
            if time.perf_counter() - start > seconds:
                break
        return count / (time.perf_counter() - start) or None

    def _order(self) -> Order:
        config = self.config
        seconds, weights = [s.seconds for s in self.sources], [s.weight for s in config.sources]
        return Order(seconds, weights, config.crop_seconds, config.window_clips, self.seed, config.resample)

    def _batching(self, world_size: int) -> Batching:
        return Batching(world_size, self.config.batch_size, self.config.batch_seconds)

    def _stream_sampler(self, rank: int, world_size: int) -> StreamSampler:
        source, config = self.config.sources[0], self.config
        return StreamSampler(
            lambda: open_stream(source, rank, world_size), source.audio_column, config.window_clips,
            config.crop_seconds, self._batching(1), hash_integers(self.seed, rank), self.position, self._stream_state,
        )  # fmt: skip

    def _held_out_loader(self, name: str, crop_seconds: float) -> DataLoader | list:
        """Every crop once, sorted by length; rank r takes rows r, r + world_size, ... of each batch."""
        if name not in self._held_out:
            return []
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        source = self._held_out[name]
        order = Order([source.seconds], [1.0], crop_seconds, 1, seed=0)
        crops = order.crops(np.arange(order.num_crops))
        crops = crops.take(np.lexsort((crops.start_seconds, crops.clip, crops.seconds)))
        clips = self.config.batch_size
        seconds = clips * self.config.crop_seconds if clips is not None else self.config.batch_seconds
        assert seconds is not None
        requests = [BatchRequest(part, 0) for part in eval_batches(crops, clips, seconds, rank, world_size)]
        pad_seconds = crop_seconds if self.config.pad_to_crop and np.isfinite(crop_seconds) else None
        return self._loader(CropDataset([source], pad_seconds, replace_bad=False), requests)

    def _loader(self, batches: CropDataset, requests: Iterable[BatchRequest]) -> DataLoader:
        return DataLoader(
            batches,
            batch_size=None,  # a request is a whole batch
            sampler=requests,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            **loader_settings(self.config),
        )


def _as_it_is(batch: Any) -> Any:
    """Keeps the loader from going through all names and lengths of a batch in search of arrays."""
    return batch


def open_stream(source: SourceConfig, rank: int, world_size: int) -> Any:
    """The part of a streamed dataset that this rank reads."""
    from datasets.distributed import split_dataset_by_node

    stream = load_hub(source)
    return split_dataset_by_node(stream, rank, world_size) if world_size > 1 else stream


def stream_clips(source: SourceConfig) -> Iterator[tuple[str, Callable[[], Encoded]]]:
    """Name and encoded clip of each row, in the order of the stream."""
    for number, row in enumerate(open_stream(source, 0, 1)):
        yield f"{source.path}#{number}", partial(encoded_clip, row[source.audio_column])


def _check_sources(sources: list[SourceConfig]) -> None:
    for number, source in enumerate(sources):
        if source.streaming and source.kind != "huggingface":
            raise UserError(f"data.sources.{number}: only kind=huggingface can be streamed, not {source.kind}")
        if source.weight * 1000 < sum(other.weight for other in sources) or source.weight <= 0:
            raise UserError(
                f"data.sources.{number}.weight={source.weight} must be above 0 and a thousandth of all weights; "
                "raise it, or remove the source"
            )


def _check_shards(config: SourceConfig, source: Source, max_bad_share: float) -> None:
    if len(source.missing) > max_bad_share * ((source.shards or 0) + len(source.missing)):
        shard, reason = source.missing[0]
        raise UserError(
            f"{len(source.missing)} of {(source.shards or 0) + len(source.missing)} shards of {config.path} cannot be "
            f"read, more than data.max_bad_share={max_bad_share} ({shard}: {reason}); fix them or raise the share"
        )


def _check_same_on_all_ranks(fingerprints: list[str]) -> None:
    """Raises UserError: ranks see different clips; they would not share the same global batches."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, fingerprints)
    if different := [rank for rank, each in enumerate(gathered) if each != gathered[0]]:
        raise UserError(
            f"process {different[0]} sees other clips in data.sources than process 0 (files missing on a node, copied "
            "with new modification times, or a shard that one of them could not read); make them the same"
        )


def _check_readable(config: SourceConfig, source: Source) -> None:
    if not len(source):
        examples = "; ".join(f"{name}: {reason}" for name, reason in source.bad[:3])
        raise UserError(f"none of the {len(source.bad)} clips of {config.path} can be read ({examples})")
