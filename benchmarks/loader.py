"""Crops per second on one core: our loader compared with the official pipeline (webdataset, whole files, in order).

    python -m benchmarks.loader                     # about two minutes
    python -m benchmarks.loader --audio my/audio    # your own folder, as shards, and its long files

Both read the same clips, 16 kHz mono, into batches of 32 crops of up to 2 s. They take turns (A B A B ...); compare the
ratio of the medians. The official pipeline is the class from the `dasheng` package. It decodes with `torchaudio.load`,
which needs torchcodec since torchaudio 2.9; soundfile replaces it here. It reads tar files only. It cuts all crops of a
long file in sequence: the file is decoded once, but crops of one recording are adjacent. For a single crop it decodes
the whole file. Both cases are measured. Ours reads crops in any order, or from the decoded cache; shards are as `pack`
writes them, or `pack --audio flac --segment-seconds 10`, beside the official pipeline on the files as they were.
"Limit" is the ratio if reading the files with soundfile were all there is to do.
"""

import argparse
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
import webdataset
from dasheng.train.audiowebdataset import Audiowebdataset_Fluid

from benchmarks.report import machine_and_date, table
from src.audio.decode import SAMPLE_RATE, decode, probe
from src.config.settings import DataConfig, SourceConfig
from src.data.packing.manifest import list_clips
from src.data.packing.pack import pack
from src.data.packing.plan import plan_shards
from src.data.packing.prepare import KEEP, Preparation
from src.data.packing.shard_file import Packed
from src.data.pretraining.datamodule import PretrainDataModule
from src.memory import keep_freed_memory

DEMO = Path(__file__).parents[1] / "data" / "demo"
CROP_SECONDS = 2.0
BATCH = 32
ROUNDS = 5
LONG_SECONDS, LONG_FILES = 90, 32  # 32 files of 45 crops are whole batches
LONG_FORMATS = {  # name: format and subtype in soundfile
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
PREPARATIONS = {  # command: what is stored
    "pack": KEEP,
    "pack --audio flac": Preparation("flac", SAMPLE_RATE, 10.0),
}

Job = Callable[[], int]  # runs an epoch and returns the number of crops


def our_epoch(source: SourceConfig, cache_gigabytes: float = 0.0) -> Job:
    config = DataConfig(
        sources=[source], crop_seconds=CROP_SECONDS, batch_size=BATCH, cache_gigabytes=cache_gigabytes, num_workers=0
    )
    data = PretrainDataModule(config)
    data.prepare_data()
    data.setup()
    crops = data.summary().crops
    assert crops is not None

    def epoch() -> int:
        count = 0
        for batch in data.train_dataloader():
            count += len(batch["key"])
            if count >= crops:
                break
        return count

    return epoch


def official_epoch(tar: Path) -> Job:
    def epoch() -> int:
        return sum(len(batch[1]) for batch in official_pipeline(tar, BATCH))

    return epoch


def official_one_crop(tar: Path) -> Job:
    """One crop from each file."""

    def epoch() -> int:
        crops = official_pipeline(tar, None)
        first_of_each = (next(group)[0] for _, group in itertools.groupby(crops, key=lambda crop: crop[1]))
        return sum(1 for _ in first_of_each)

    return epoch


def official_pipeline(tar: Path, batch_size: int | None) -> Iterator:
    webdataset.torch_audio = read_whole  # looked up when the pipeline is built
    return iter(Audiowebdataset_Fluid([str(tar)], crop_size=round(CROP_SECONDS * SAMPLE_RATE), batch_size=batch_size))


def read_whole(key: str, data: bytes) -> tuple[torch.Tensor, int] | None:
    """Replaces `torchaudio.load`: (channels, T) and the sample rate; None for members that are not audio."""
    if not key.endswith(".wav"):
        return None
    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return torch.from_numpy(waveform.T), rate


def decode_only(folder: Path) -> Job:
    """All files of a folder, read whole; the crops that they have."""
    files = sorted(folder.iterdir())
    crops = sum(max(1, int(soundfile.info(file).duration / CROP_SECONDS)) for file in files)

    def epoch() -> int:
        for file in files:
            soundfile.read(file, dtype="float32")
        return crops

    return epoch


def write_clips(folder: Path, tar: Path, clips: list[bytes], suffix: str) -> None:
    """Write clips as files and as members of a tar, named .wav, since the official pipeline accepts few suffixes."""
    folder.mkdir(parents=True)
    with tarfile.open(tar, "w") as shard:
        for number, clip in enumerate(clips):
            (folder / f"{number:05}{suffix}").write_bytes(clip)
            member = tarfile.TarInfo(f"{number:05}.wav")
            member.size = len(clip)
            shard.addfile(member, io.BytesIO(clip))


def encode(waveform: np.ndarray, container: str, codec: str) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, codec, format=container) as sound:
        for start in range(0, len(waveform), SAMPLE_RATE):  # libsndfile crashes when writing minutes of Vorbis at once
            sound.write(waveform[start : start + SAMPLE_RATE])
    return file.getvalue()


def demo_clips() -> list[bytes]:
    files = (DEMO / "data").glob("train-*.parquet")
    return [row["bytes"] for file in sorted(files) for row in pq.read_table(file).column("audio").to_pylist()]


def make_cases(folder: Path) -> dict[str, list[Job]]:
    """Our job and the official one for each row of the table, and decoding alone."""
    clips = demo_clips()
    waveforms = [decode(clip) for clip in clips]
    demo = SourceConfig(kind="huggingface", path=str(DEMO))
    write_clips(folder / "opus", folder / "opus.tar", clips, ".opus")
    write_clips(folder / "flac", folder / "flac.tar", [encode(w, *LONG_FORMATS["flac"]) for w in waveforms], ".flac")
    for name, preparation in PREPARATIONS.items():
        write_shards(folder / "opus", folder / f"opus-{name}", preparation)
    opus = [official_epoch(folder / "opus.tar"), decode_only(folder / "opus")]
    flac = [official_epoch(folder / "flac.tar"), decode_only(folder / "flac")]
    cases = {
        "demo, 1.4 s opus": [our_epoch(demo), *opus],
        **{f"shards, 1.4 s opus, {name}": [our_shards(folder / f"opus-{name}"), *opus] for name in PREPARATIONS},
        "demo, decoded cache": [our_epoch(demo, 1.0), *opus],
        "folder, 1.4 s flac": [our_epoch(SourceConfig(kind="folder", path=str(folder / "flac"))), *flac],
        "shard, 1.4 s flac": [our_epoch(SourceConfig(kind="shards", path=str(folder / "flac.tar"))), *flac],
    }
    sound = np.resize(np.concatenate(waveforms), (LONG_FILES, LONG_SECONDS * SAMPLE_RATE))
    for name, (container, codec) in LONG_FORMATS.items():
        long = [encode(waveform, container, codec) for waveform in sound]
        tar = folder / f"long-{name}.tar"
        write_clips(folder / f"long-{name}", tar, long, f".{name.replace('vorbis', 'ogg')}")
        ours = our_epoch(SourceConfig(kind="folder", path=str(folder / f"long-{name}")))
        cases[f"{LONG_SECONDS} s {name}, one crop of each file"] = [ours, official_one_crop(tar)]
        cases[f"{LONG_SECONDS} s {name}, all crops"] = [ours, official_epoch(tar), decode_only(folder / f"long-{name}")]
    return cases


def cases_of_folder(folder: Path, root: Path) -> dict[str, list[Job]]:
    """All files of a folder as shards written by `src.pack`, and one crop from each file of over half a minute."""
    clips = list_clips([str(root)])
    packed = {name: write_shards(root, folder / name, preparation) for name, preparation in PREPARATIONS.items()}
    results = packed["pack"]
    samples, hours = sum(each.samples for each in results), sum(each.seconds for each in results) / 3600
    unreadable = {path for each in results for path, _ in each.skipped}
    files = [Path(clip.path) for clip in clips if clip.path not in unreadable]
    write_clips(folder / "own", folder / "own.tar", [file.read_bytes() for file in files], files[0].suffix)
    official = [official_epoch(folder / "own.tar"), decode_only(folder / "own")]
    cases = {
        f"{root.name}, {samples:,} clips, {hours:.1f} h, shards, {name}": [our_shards(folder / name), *official]
        for name in PREPARATIONS
    }
    if long := [file for file in files if probe(file).seconds > 30]:
        write_clips(folder / "long-own", folder / "long-own.tar", [file.read_bytes() for file in long], long[0].suffix)
        ours = our_epoch(SourceConfig(kind="folder", path=str(folder / "long-own")))
        mean = sum(probe(file).seconds for file in long) / len(long)
        what = f"{root.name}, {len(long)} files of {mean:.0f} s, one crop of each"
        cases[what] = [ours, official_one_crop(folder / "long-own.tar")]
    return cases


def write_shards(root: Path, folder: Path, preparation: Preparation) -> list[Packed]:
    shards = plan_shards(list_clips([str(root)]), str(folder), 20e6, preparation)
    return list(pack(shards, str(folder), preparation=preparation))


def our_shards(folder: Path) -> Job:
    return our_epoch(SourceConfig(kind="shards", path=f"{folder}/*.tar"))


def crops_per_second(job: Job) -> float:
    start = time.perf_counter()
    count = job()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="use these files instead of the demo")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds after the warm-up; the median is reported")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command and its workers do
    warnings.filterwarnings("ignore", module="webdataset")
    print(machine_and_date(), "\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUDIO_ENCODER_CACHE"] = str(Path(folder) / "cache")
        work = Path(folder)
        cases = cases_of_folder(work, options.audio) if options.audio else make_cases(work)
        for name, jobs in cases.items():
            speeds = [[crops_per_second(job) for job in jobs] for _ in range(options.rounds + 1)]
            measured = speeds[1:]  # without the warm-up
            ours, official, *limit = (statistics.median(column) for column in zip(*measured, strict=True))
            ratios = [f"{speed / official:.2f}" for speed in (ours, *limit)]
            rows.append([name, f"{ours:,.0f}", f"{official:,.0f}", *ratios, *([] if limit else ["-"])])
    print(table(["clips", "ours, crops/s", "official, crops/s", "ratio", "limit"], rows))


if __name__ == "__main__":
    main()
