"""A labelled set as a LightningDataModule: batches of waveforms, or of embeddings if the encoder is frozen."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from src.audio.decode import SAMPLE_RATE, AudioError
from src.config.settings import DataConfig
from src.data.labelled.splits import LabelledSet, Split
from src.data.pad import pad
from src.data.workers import loader_settings
from src.errors import UserError


class LabelledDataModule(L.LightningDataModule):
    """Batches: waveform (B, T), length (B,), or embedding (B, D) or (B, N, D) with num_tokens (B,); target (B, C);
    index (B,), of the clips in their split; events (B, E, 3), onset and offset in seconds and class index, padded with
    rows of -1.

    In training, a clip longer than `data.crop_seconds` gives one random crop per epoch; validation and test use whole
    clips, in batches of as much padded audio as in training at most, or one long clip. Clips that cannot be decoded are
    missing from their batch.

    Args:
        balanced: in training, draw every class equally often, however many clips it has.
        overfit: train on the same clips in every epoch.

    Attributes:
        progress: epoch, and the number of its batches trained on; the LightningModule counts them.
        embeddings: by split, (D,) or (N, D) of each clip; set for a frozen encoder. hop_seconds: between its tokens.
    """

    def __init__(
        self, labelled: LabelledSet, config: DataConfig, seed: int = 0, balanced: bool = False, overfit: bool = False
    ) -> None:
        super().__init__()
        self.labelled, self.config, self.seed, self.balanced = labelled, config, seed, balanced
        self.overfit, self.progress = overfit, (0, 0)
        self.embeddings: dict[str, list[Tensor]] | None = None
        self.hop_seconds = 0.04

    def state_dict(self) -> dict[str, Any]:
        return {"progress": list(self.progress)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        epoch, batches = state_dict["progress"]
        self.progress = (epoch, batches)

    @property
    def clips_per_batch(self) -> float:
        """In one process."""
        return self.batch_size

    @property
    def batch_size(self) -> int:
        seconds = self.config.batch_seconds
        return self.config.batch_size or max(1, int((seconds or 0) / self.config.crop_seconds))

    def setup(self, stage: str) -> None:
        """Raises UserError: a split has fewer clips than there are processes."""
        processes = self.trainer.world_size if self.trainer else 1
        for name, part in self.labelled.parts.items():
            if len(part) < processes:
                raise UserError(
                    f"{name} has {len(part)} clips for {processes} processes; use fewer processes "
                    f"(trainer.devices={len(part)}), or give {name} more clips"
                )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def _loader(self, name: str) -> DataLoader:
        part, train = self.labelled.parts[name], name == "train"
        columns = {label: number for number, label in enumerate(self.labelled.class_names)}
        crop = self.config.crop_seconds if train else None
        dataset: Dataset
        collate: Callable
        if self.embeddings is not None:
            dataset = EmbeddedClips(part, self.embeddings[name], columns, crop, self.seed, self.hop_seconds)
            collate = collate_embedded
        else:
            dataset, collate = Clips(part, columns, crop, self.seed), collate_clips
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if not train:
            clips = range(rank, len(part), world_size)
            batches = bounded_batches(clips, part.seconds, self.batch_size, self.batch_size * self.config.crop_seconds)
            rows = [[(0, clip) for clip in batch] for batch in batches]
            return DataLoader(dataset, batch_sampler=rows, collate_fn=collate, **loader_settings(self.config))
        weights = rarity(part.targets) if self.balanced else None
        sampler = EpochSampler(len(part), self.seed, rank, world_size, weights, self.overfit)
        loader = DataLoader(
            dataset, self.batch_size, sampler=sampler, collate_fn=collate, **loader_settings(self.config)
        )
        epoch, done = self.progress
        over = done >= len(loader)
        sampler.start_at(epoch + over, 0 if over else done * self.batch_size)
        return loader


def bounded_batches(
    clips: Iterable[int], seconds: Callable[[int], float], most_clips: int, most_seconds: float
) -> list[list[int]]:
    """Consecutive clips, at most `most_clips` and `most_seconds` of padded audio a batch; a longer clip is alone."""
    batches: list[list[int]] = []
    longest = 0.0
    for clip in clips:
        longest = max(longest, seconds(clip))
        if batches and len(batches[-1]) < most_clips and (len(batches[-1]) + 1) * longest <= most_seconds:
            batches[-1].append(clip)
        else:
            batches.append([clip])
            longest = seconds(clip)
    return batches


def rarity(targets: np.ndarray) -> np.ndarray:
    """Sampling weights (n, C) -> (n,): inversely proportional to the size of a clip's rarest class, summing to 1."""
    weight = (targets / np.maximum(targets.sum(0), 1)).max(1)
    return weight / weight.sum()


class EpochSampler(Sampler[tuple[int, int]]):
    """The training clips of one rank, as (epoch, clip), shuffled by (seed, epoch), equally many on each rank.

    Args:
        weights: (n,) probabilities, drawn with replacement; None takes each clip once.
        same: use the order of the first epoch in every epoch.
    """

    def __init__(
        self, num_clips: int, seed: int, rank: int, world_size: int, weights: np.ndarray | None = None,
        same: bool = False,
    ) -> None:  # fmt: skip
        self.num_clips, self.seed, self.rank, self.world_size = num_clips, seed, rank, world_size
        self.weights, self.same, self.epoch = weights, same, 0
        self._start = (0, 0)

    def start_at(self, epoch: int, clips: int) -> None:
        """Skip the first clips of this epoch: they were trained on before the resume."""
        self.epoch, self._start = epoch, (epoch, clips)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng([self.seed, 0 if self.same else self.epoch])
        order = random.choice(self.num_clips, self.num_clips, self.weights is not None, self.weights)
        clips = np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]
        epoch, skipped = self._start
        rest = clips[skipped if self.epoch == epoch else 0 :]
        return iter([(self.epoch, clip) for clip in rest.tolist()])

    def __len__(self) -> int:
        return -(-self.num_clips // self.world_size)


class Clips(Dataset):
    """crop_seconds: longer clips are cropped, at a start drawn from (seed, epoch, clip); None takes whole clips."""

    def __init__(self, part: Split, columns: dict[str, int], crop_seconds: float | None, seed: int) -> None:
        self.part, self.columns, self.crop_seconds, self.seed = part, columns, crop_seconds, seed

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any] | None:
        epoch, i = index
        start, crop = 0.0, self.crop_seconds
        if crop is not None:
            start = max(0.0, self.part.seconds(i) - crop) * _fraction(self.seed, epoch, i)
        try:
            waveform = self.part.waveform(i, start, crop)
        except AudioError as error:  # all could be decoded at the start: a shard that does not answer
            warnings.warn(f"{self.part.clips[i].key} is left out of a batch: {error}", stacklevel=2)
            return None
        if crop is not None:
            waveform = waveform[: round(crop * SAMPLE_RATE)]
        return {
            "waveform": torch.from_numpy(np.ascontiguousarray(waveform)),
            **_truth(self.part, i, self.columns, start),
        }


class EmbeddedClips(Dataset):
    """Clips as vectors (D,), or as tokens (N, D), which are cropped as in `Clips`. hop_seconds: between tokens."""

    def __init__(
        self, part: Split, embeddings: list[Tensor], columns: dict[str, int], crop_seconds: float | None, seed: int,
        hop_seconds: float,
    ) -> None:  # fmt: skip
        self.part, self.embeddings, self.columns = part, embeddings, columns
        self.crop_seconds, self.seed, self.hop_seconds = crop_seconds, seed, hop_seconds

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        epoch, i = index
        embedding, first = self.embeddings[i], 0
        if embedding.ndim == 2 and self.crop_seconds is not None:
            num_tokens = max(1, round(self.crop_seconds / self.hop_seconds))
            first = round(max(0, len(embedding) - num_tokens) * _fraction(self.seed, epoch, i))
            embedding = embedding[first : first + num_tokens]
        return {"embedding": embedding, **_truth(self.part, i, self.columns, first * self.hop_seconds)}


def _fraction(seed: int, epoch: int, clip: int) -> float:
    """Where a crop starts, 0 to 1."""
    return float(np.random.default_rng([seed, epoch, clip]).random())


def _truth(part: Split, i: int, columns: dict[str, int], start: float = 0.0) -> dict[str, Any]:
    events = events_of(part, i, columns) - torch.tensor([start, start, 0.0])
    return {"target": torch.from_numpy(part.targets[i]), "index": torch.tensor(i), "events": events}


def events_of(part: Split, i: int, columns: dict[str, int]) -> Tensor:
    """(E, 3): onset and offset in seconds, class index."""
    rows = [(event.onset, event.offset, columns[event.label]) for event in part.events(i)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)


def collate_clips(clips: list[dict[str, Any] | None]) -> dict[str, Any]:
    readable = [clip for clip in clips if clip is not None]
    if not readable:
        raise UserError("none of the clips of a batch could be read; run it again with --resume auto")
    return {**pad([clip["waveform"] for clip in readable]), **_collate_truth(readable)}


def collate_embedded(clips: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [clip["embedding"] for clip in clips]
    batch = _collate_truth(clips)
    if rows[0].ndim == 2:
        batch["num_tokens"] = torch.tensor([len(row) for row in rows])
    return {"embedding": pad_sequence(rows, batch_first=True), **batch}


def _collate_truth(clips: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: torch.stack([clip[name] for clip in clips]) for name in ("target", "index")}
    return {**batch, "events": pad_sequence([clip["events"] for clip in clips], batch_first=True, padding_value=-1.0)}
