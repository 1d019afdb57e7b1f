"""A labelled set as a LightningDataModule: batches of waveforms, or of embeddings where the encoder is frozen."""

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.config import DataConfig
from src.data.batch import pad
from src.data.decode import SAMPLE_RATE, AudioError
from src.data.labelled import LabelledPart, LabelledSet


class LabelledData(L.LightningDataModule):
    """Batches: waveform (B, T), length (B,), or embedding (B, D); target (B, C); index (B,), places in the part.

    In training a clip longer than `data.crop_seconds` gives one crop of it, elsewhere an epoch; in validation and test
    whole clips go in. Clips that cannot be decoded are missing from their batch.

    Attributes:
        embeddings: by part, (n, D); set for a frozen encoder.
    """

    def __init__(self, labelled: LabelledSet, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.labelled, self.config, self.seed = labelled, config, seed
        self.embeddings: dict[str, Tensor] | None = None

    @property
    def batch_size(self) -> int:
        seconds = self.config.batch_seconds
        return self.config.batch_size or max(1, int((seconds or 0) / self.config.crop_seconds))

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("valid")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    def _loader(self, name: str) -> DataLoader:
        part = self.labelled.parts[name]
        dataset: Dataset
        if self.embeddings is not None:
            dataset, collate = EmbeddedClips(part, self.embeddings[name]), None
        else:
            crop = self.config.crop_seconds if name == "train" else None
            dataset, collate = Clips(part, crop), collate_clips
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=EpochSampler(len(part), self.seed, name == "train", rank, world_size),
            num_workers=self.config.num_workers,
            collate_fn=collate,
            persistent_workers=self.config.num_workers > 0,
        )


class EpochSampler(Sampler[int]):
    """A process's share of the clips: in training shuffled by (seed, epoch), as many on each; else each clip once."""

    def __init__(self, num_clips: int, seed: int, shuffle: bool, rank: int, world_size: int) -> None:
        self.num_clips, self.seed, self.shuffle, self.rank, self.world_size = num_clips, seed, shuffle, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it."""
        self.epoch = epoch

    def __iter__(self):
        if not self.shuffle:
            return iter(range(self.rank, self.num_clips, self.world_size))
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_clips)
        return iter(np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        if self.shuffle:
            return -(-self.num_clips // self.world_size)
        return len(range(self.rank, self.num_clips, self.world_size))


class Clips(Dataset):
    """crop_seconds: longest piece of a clip, begun anywhere; None takes whole clips."""

    def __init__(self, part: LabelledPart, crop_seconds: float | None) -> None:
        self.part, self.crop_seconds = part, crop_seconds

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: int) -> dict[str, Any] | None:
        start, crop = 0.0, self.crop_seconds
        if crop is not None:
            start = max(0.0, self.part.seconds(i) - crop) * float(torch.rand(()))
        try:
            waveform = self.part.waveform(i, start, crop)
        except AudioError:
            return None
        if crop is not None:
            waveform = waveform[: round(crop * SAMPLE_RATE)]
        return {
            "waveform": torch.from_numpy(np.ascontiguousarray(waveform)),
            "target": self.part.targets[i],
            "index": i,
        }


class EmbeddedClips(Dataset):
    def __init__(self, part: LabelledPart, embeddings: Tensor) -> None:
        self.part, self.embeddings = part, embeddings

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"embedding": self.embeddings[i], "target": torch.from_numpy(self.part.targets[i]), "index": i}


def collate_clips(clips: list[dict[str, Any] | None]) -> dict[str, Any]:
    readable = [clip for clip in clips if clip is not None]
    if not readable:
        raise AudioError("none of the clips of a batch could be read")
    batch = pad([clip["waveform"] for clip in readable])
    batch["target"] = torch.from_numpy(np.stack([clip["target"] for clip in readable]))
    batch["index"] = torch.tensor([clip["index"] for clip in readable])
    return batch
