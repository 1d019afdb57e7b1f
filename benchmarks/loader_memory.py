"""Memory and open files of the loader over forty epochs, for each kind of source (Linux).

    python -m benchmarks.loader_memory

The demo's clips and 90 s MP3 files are read without the decoded cache, by two workers, in crops of 2 s. After an epoch:
memory of this process and its workers and the number of their open descriptors.
"""

import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.loader import BATCH, CROP_SECONDS, DEMO, LONG_FORMATS, demo_clips, encode, write_clips
from benchmarks.report import machine_and_date, table
from src.audio.decode import SAMPLE_RATE, decode
from src.config.settings import DataConfig, SourceConfig
from src.data.pretraining.datamodule import PretrainDataModule

EPOCHS = 40
SHOWN = (1, 10, 20, 40)


def main() -> None:
    print(machine_and_date(), "\n")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        os.environ["AUDIO_ENCODER_CACHE"] = str(Path(name) / "cache")
        for kind, source in make_sources(Path(name)).items():
            figures = measure(source)
            rows.append([kind, *(f"{figures[epoch - 1][0]:,.0f}, {figures[epoch - 1][1]}" for epoch in SHOWN)])
    print(table(["source", *(f"epoch {epoch}: MB, descriptors" for epoch in SHOWN)], rows))


def make_sources(folder: Path) -> dict[str, SourceConfig]:
    clips = demo_clips()
    write_clips(folder / "opus", folder / "opus.tar", clips, ".opus")
    sound = np.concatenate([decode(clip) for clip in clips])
    minutes = np.array_split(sound, len(sound) // (90 * SAMPLE_RATE))
    write_clips(folder / "mp3", folder / "mp3.tar", [encode(each, *LONG_FORMATS["mp3"]) for each in minutes], ".mp3")
    return {
        "folder of short Opus files": SourceConfig(kind="folder", path=str(folder / "opus")),
        "tar shard of the same": SourceConfig(kind="shards", path=str(folder / "opus.tar")),
        "parquet dataset": SourceConfig(kind="huggingface", path=str(DEMO)),
        "the same, streamed": SourceConfig(kind="huggingface", path=str(DEMO), streaming=True),
        "folder of 90 s MP3 files": SourceConfig(kind="folder", path=str(folder / "mp3")),
    }


def measure(source: SourceConfig) -> list[tuple[float, int]]:
    """(MB, descriptors) after each epoch."""
    config = DataConfig(
        sources=[source], crop_seconds=CROP_SECONDS, batch_size=BATCH, num_workers=2, cache_gigabytes=0.0
    )
    data = PretrainDataModule(config)
    data.prepare_data()
    data.setup()
    crops = data.summary().crops or len(demo_clips())  # of a stream the number is unknown
    figures, seen = [], 0
    for batch in data.train_dataloader():
        seen += len(batch["key"])
        if seen >= crops * (len(figures) + 1):
            processes = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children() if worker.pid)]
            figures.append((sum(map(megabytes, processes)), sum(map(descriptors, processes))))
        if len(figures) == EPOCHS:
            break
    return figures


def megabytes(pid: int) -> float:
    """Anonymous pages: without files that are mapped, which the system drops when it needs the memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1000


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


if __name__ == "__main__":
    main()
