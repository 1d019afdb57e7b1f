"""Startup cost of a corpus of the paper's size for one process: opening, order, resuming, memory.

    python -m benchmarks.scale_index                    # 100 million clips: about 10 minutes, 8 GB under --folder
    python -m benchmarks.scale_index --clips 1000000

10,000 clips per shard, as the official code packs them. Names, sizes and lengths are synthetic; the tars are sparse
files of the right size. Memory is either private to the process or in mapped files; mapped pages are shared by all
processes of a machine and released when memory is low.
"""

import argparse
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import machine_and_date, table
from src.data.pretraining.order import Batching, Order
from src.data.pretraining.sampler import OrderSampler
from src.data.sources.shards import ShardSource

CLIPS_PER_SHARD = 10_000
ROWS: list[list[str]] = []


def write_shards(folder: Path, num_clips: int) -> None:
    """Write indexes like those of `python -m src.pack`; clips of 1 to 30 s, some unreadable."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_clips // CLIPS_PER_SHARD):
        random = np.random.default_rng(shard)
        size = random.integers(10_000, 200_000, CLIPS_PER_SHARD)
        seconds = np.round(random.uniform(1.0, 30.0, CLIPS_PER_SHARD), 3)
        seconds[:: CLIPS_PER_SHARD // 2] = np.nan
        offset = np.cumsum(-(-size // 512) * 512 + 512) - -(-size // 512) * 512
        columns = {
            "name": [f"{shard:05}/{number:07}.flac" for number in range(CLIPS_PER_SHARD)],
            "offset": offset, "size": size, "seconds": seconds,
            "sample_rate": np.full(CLIPS_PER_SHARD, 16000, np.int32),
            "channels": np.ones(CLIPS_PER_SHARD, np.int32),
        }  # fmt: skip
        tar = folder / f"{shard:06}.tar"
        with open(tar, "wb") as file:
            file.truncate(int(offset[-1] + size[-1]))
        pq.write_table(pa.table(columns), f"{tar}.index.parquet")


def memory() -> tuple[float, float]:
    """Private and mapped memory of this process, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["RssFile"].split()[0]) / 1024


@contextmanager
def measured(what: str) -> Iterator[None]:
    private, mapped = memory()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    after = memory()
    ROWS.append([what, f"{seconds:.2f}", f"{after[0] - private:,.0f}", f"{after[1] - mapped:,.0f}"])
    print(ROWS[-1], flush=True)


def measure(folder: Path) -> None:
    pattern = f"{folder}/*.tar"
    with measured("first opening: the indexes of all shards are merged"):
        ShardSource(pattern)
    with measured("opening again"):
        source = ShardSource(pattern)
    with measured("hours of audio: reads the length of every clip"):
        hours = float(source.seconds.sum()) / 3600
    with measured("order: counts the crops"):
        order = Order([source.seconds], [1.0], 10.0, 4096, seed=0)
    batching = Batching(64, 32, None)
    position = 3 * order.num_crops // 4 // 2048 * 2048 + 5 * order.num_crops
    with measured("first batch after a resume in the sixth epoch"):
        sampler = OrderSampler(order, batching, 7, position)
        first = next(iter(sampler))
    with measured("100 windows of the order (409,600 crops)"):
        list(itertools.islice(sampler, 200))
    with measured("location and name of 1,000 random clips"):
        clips = np.random.default_rng(0).integers(0, len(source), 1000)
        for clip in clips.tolist():
            source.name(clip), source._table.place(clip)
    print(f"\n{len(source):,} clips, {hours:,.0f} hours, {order.num_crops:,} crops; rank 7 of 64")
    print(f"first batch: {len(first.crops)} clips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000_000)
    parser.add_argument("--folder", help="folder for the synthetic corpus and its index; default: temporary")
    options = parser.parse_args()
    print(machine_and_date(), "\n")
    folder = Path(options.folder or tempfile.mkdtemp())
    os.environ["AUDIO_ENCODER_CACHE"] = str(folder / "cache")
    try:
        with measured("(creating it)"):
            write_shards(folder / "shards", options.clips)
        measure(folder / "shards")
    finally:
        if not options.folder:
            shutil.rmtree(folder)
    print()
    print(table(["what", "seconds", "private, MB", "mapped, MB"], ROWS[1:]))


if __name__ == "__main__":
    main()
