"""Processor time per crop of long files, by the number of workers that read them.

    python -m benchmarks.loader_workers

Each worker decodes only the crops of its own batches, so that the more there are, the more they seek. Here the batches
of all workers are made in turn in one process: an epoch of 32 files of 90 s in crops of 2 s, 16 kHz mono, the least of
three rounds.
"""

import itertools
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader import (
    BATCH,
    CROP_SECONDS,
    LONG_FILES,
    LONG_FORMATS,
    LONG_SECONDS,
    demo_clips,
    encode,
    write_clips,
)
from benchmarks.report import machine_and_date, table
from src.audio.decode import SAMPLE_RATE, decode
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.batch import CropDataset
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.pretraining.sampler import OrderSampler
from src.memory import keep_freed_memory

WORKERS, ROUNDS = (1, 2, 4, 8, 16), 3


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    print(machine_and_date(), "\n")
    sound = np.resize(np.concatenate([decode(clip) for clip in demo_clips()]), (LONG_FILES, LONG_SECONDS * SAMPLE_RATE))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["AUDIO_ENCODER_CACHE"] = str(Path(name) / "cache")
        for kind, (container, codec) in LONG_FORMATS.items():
            folder = Path(name) / kind
            clips = [encode(waveform, container, codec) for waveform in sound]
            write_clips(folder, Path(name) / f"{kind}.tar", clips, f".{kind.replace('vorbis', 'ogg')}")
            rows.append([kind, *(f"{microseconds(folder, workers):.0f}" for workers in WORKERS)])
    print(table(["µs a crop", *(f"{workers} workers" for workers in WORKERS)], rows))


def microseconds(folder: Path, workers: int) -> float:
    source = SourceConfig(kind="folder", path=str(folder))
    data = PretrainDataModule(
        DataConfig(
            sources=[source], crop_seconds=CROP_SECONDS, batch_size=BATCH, cache_gigabytes=0, num_workers=workers
        )
    )
    data.setup()
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, OrderSampler)
    crops = LONG_FILES * LONG_SECONDS / CROP_SECONDS
    requests = list(itertools.islice(sampler, round(crops / BATCH)))
    seconds = []
    for _ in range(ROUNDS):
        datasets = [CropDataset(data.sources) for _ in range(workers)]
        start = time.process_time()
        for number, request in enumerate(requests):
            datasets[number % workers][request]
        seconds.append(time.process_time() - start)
    return 1e6 * min(seconds) / crops


if __name__ == "__main__":
    main()
