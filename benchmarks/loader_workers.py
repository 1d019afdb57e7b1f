"""Long files, read by workers: processor time per crop by the number of workers, and how long training waits.

    python -m benchmarks.loader_workers

Each worker decodes only the crops of its own batches, so that the more there are, the more they seek. Here the batches
of all workers are made in turn in one process: an epoch of 32 files of 90 s, 16 kHz mono, in crops of 2 s (batches of
32) and of 10 s (batches of 8), the least of three rounds.

Waiting: a worker reads the crops of 2 s for steps that take 1.25 times as long as it needs for a batch on average; the
share of time in which no batch is ready, over two epochs after the first, and the longest wait, in steps.
"""

import itertools
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader import LONG_FILES, LONG_FORMATS, LONG_SECONDS, demo_clips, encode, write_clips
from benchmarks.report import machine_and_date, table
from src.audio.decode import SAMPLE_RATE, decode
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.batch import CropDataset
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.pretraining.sampler import OrderSampler
from src.memory import keep_freed_memory

WORKERS, ROUNDS = (1, 2, 4, 8, 16), 3
BATCHES = {2.0: 32, 10.0: 8}  # size, by the seconds of a crop
PACE = 1.25  # seconds of a step, as a multiple of what the worker needs for a batch


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    print(machine_and_date(), "\n")
    sound = np.resize(np.concatenate([decode(clip) for clip in demo_clips()]), (LONG_FILES, LONG_SECONDS * SAMPLE_RATE))
    costs, waits = [], []
    with tempfile.TemporaryDirectory() as name:
        os.environ["AUDIO_ENCODER_CACHE"] = str(Path(name) / "cache")
        for kind, (container, codec) in LONG_FORMATS.items():
            folder = Path(name) / kind
            clips = [encode(waveform, container, codec) for waveform in sound]
            write_clips(folder, Path(name) / f"{kind}.tar", clips, f".{kind.replace('vorbis', 'ogg')}")
            for seconds in BATCHES:
                found = [f"{microseconds(folder, seconds, workers):.0f}" for workers in WORKERS]
                costs.append([f"{kind}, {seconds:g} s", *found])
            share, longest = waiting(folder, min(BATCHES))
            waits.append([kind, f"{100 * share:.0f} %", f"{longest:.1f}"])
    print(table(["µs a crop", *(f"{workers} workers" for workers in WORKERS)], costs), "\n")
    print(table(["waiting", "share of time", "longest, in steps"], waits))


def data_of(folder: Path, crop_seconds: float, workers: int) -> tuple[PretrainDataModule, int]:
    """And the number of batches in an epoch."""
    batch = BATCHES[crop_seconds]
    sources = [SourceConfig(kind="folder", path=str(folder))]
    data = PretrainDataModule(
        DataConfig(sources=sources, crop_seconds=crop_seconds, batch_size=batch, cache_gigabytes=0, num_workers=workers)
    )
    data.setup()
    return data, round(LONG_FILES * LONG_SECONDS / crop_seconds / batch)


def microseconds(folder: Path, crop_seconds: float, workers: int) -> float:
    data, batches = data_of(folder, crop_seconds, workers)
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, OrderSampler)
    requests = list(itertools.islice(sampler, 2 * batches))
    seconds = []
    for _ in range(ROUNDS):
        datasets = [CropDataset(data.sources) for _ in range(workers)]
        for number, request in enumerate(requests):
            if number == batches:  # the first epoch decodes its own crops, and those of the second
                start = time.process_time()
            datasets[number % workers][request]
        seconds.append(time.process_time() - start)
    return 1e6 * min(seconds) / (batches * BATCHES[crop_seconds])


def waiting(folder: Path, crop_seconds: float) -> tuple[float, float]:
    """The share of time, and the longest in steps."""
    data, batches = data_of(folder, crop_seconds, 1)
    loader = iter(data.train_dataloader())
    for _ in range(batches):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    step = PACE * (time.perf_counter() - start) / batches
    waits = []
    for _ in range(2 * batches):
        time.sleep(step)
        start = time.perf_counter()
        next(loader)
        waits.append(time.perf_counter() - start)
    return sum(waits) / (sum(waits) + step * len(waits)), max(waits) / step


if __name__ == "__main__":
    main()
