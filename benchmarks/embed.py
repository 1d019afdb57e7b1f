"""Speed of `src.embed` compared with the official package called file by file, and its memory on a three-hour file.

    python -m benchmarks.embed FOLDER          clips of mixed lengths; the demo if FOLDER is omitted
    python -m benchmarks.embed --memory        a three-hour file; takes about ten minutes
    python -m benchmarks.embed FOLDER --parts  the command in two processes, a thread each, compared with one

Base size, equal weights, two threads; loading the models is not timed. Both decode, embed and write, and take turns.
The official code reads each file with soundfile, calls the encoder and averages the tokens, as in its README.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch

from benchmarks.parity import demo_waveform, randomize
from benchmarks.report import machine_and_date, table
from src.audio.decode import SUFFIXES
from src.data.sources.folder import FileSource
from src.encoders.load import load_encoder
from src.encoders.save import save_encoder
from src.evaluation.collection import Settings, embed_collection
from src.evaluation.embedding_file import EmbeddingFile
from src.export import export
from src.models import create_mae

ROUNDS, CLIPS = 3, 1440


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(machine_and_date(), "\n")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_encoder(randomize(create_mae("base"), 0).encoder, work / "encoder")
        if options.memory:
            print(memory(work))
        elif options.parts:
            print(parts(work, list_files(options.folder, work)))
        else:
            print(speed(work, list_files(options.folder, work)))


def list_files(folder: str | None, work: Path) -> list[Path]:
    """At most CLIPS files, evenly spaced over the folder; the demo is written as Opus files."""
    if folder is None:
        folder = str(work / "demo")
        Path(folder).mkdir()
        for file in (Path(__file__).parent.parent / "data" / "demo" / "data").glob("*.parquet"):
            for number, row in enumerate(pq.read_table(file, columns=["audio"])["audio"].to_pylist()):
                Path(folder, f"{file.stem}-{number:04}.opus").write_bytes(row["bytes"])
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in SUFFIXES)
    files = [path for path in files if soundfile.info(path).duration >= 0.05]  # only our encoder pads shorter ones
    return [files[i] for i in np.linspace(0, len(files) - 1, min(CLIPS, len(files))).astype(int)]


def speed(work: Path, files: list[Path]) -> str:
    from dasheng.pretrained.pretrained import Dasheng

    export(str(work / "encoder"), "dasheng", work / "encoder.pt")
    official = Dasheng.from_pretrained(str(work / "encoder.pt")).eval()
    encoder = load_encoder(work / "encoder")
    ours, theirs, difference = [], [], 0.0
    for turn in range(ROUNDS):
        chosen = files[turn::ROUNDS]
        out = work / f"{turn}.parquet"
        started = time.perf_counter()
        file = EmbeddingFile(out, {})
        assert not embed_collection(encoder, [FileSource(chosen)], file, Settings(), 2, lambda clips, seconds: None)
        file.finish()
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        vectors = []
        with torch.inference_mode():
            for file in chosen:
                samples, rate = soundfile.read(file, dtype="float32")
                assert rate == 16000 and samples.ndim == 1
                vectors.append(official(torch.from_numpy(samples)[None]).mean(1)[0].numpy())
        np.save(work / "official.npy", np.stack(vectors))
        theirs.append(time.perf_counter() - started)
        rows = pq.read_table(out).column("embedding").to_pylist()
        difference = max(difference, float(np.abs(np.array(rows) - np.stack(vectors)).max()))
    seconds = sum(soundfile.info(file).duration for file in files)
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    head = ["clips", "hours", "ours, audio-hours/minute", "official", "ratio", "largest difference"]
    hours = seconds / 3600
    row = [len(files), f"{hours:.2f}", *(f"{hours / (sum(t) / 60):.2f}" for t in (ours, theirs)), f"{ratio:.2f}"]
    return table(head, [[*row, f"{difference:.1e}"]])


def parts(work: Path, files: list[Path]) -> str:
    """Seconds of the command, start included, as one process and as two with half of the files each."""
    for number, file in enumerate(files):
        (work / "clips").mkdir(exist_ok=True)
        shutil.copy(file, work / "clips" / f"{number:05}{file.suffix}")
    command = [sys.executable, "-m", "src.embed", str(work / "clips"), "--encoder", str(work / "encoder"), "--quiet"]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(ROUNDS):
        for count in seconds:
            out = ["--out", str(work / f"{count}-{turn}")]
            started = time.perf_counter()
            each = [
                subprocess.Popen(
                    [*command, *out, "--part", f"{part}/{count}"], env=os.environ | {"OMP_NUM_THREADS": "1"}
                )
                for part in range(1, count + 1)
            ]
            assert [process.wait() for process in each] == [0] * count
            seconds[count].append(time.perf_counter() - started)
    one, two = (statistics.median(each) for each in seconds.values())
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    head = ["clips", "one process, seconds", "two processes", "ratio"]
    return table(head, [[len(files), f"{one:.0f}", f"{two:.0f}", f"{ratio:.2f}"]])


def memory(work: Path) -> str:
    """Peak resident memory of the command on three hours of real audio, at clip and frame level."""
    minute = demo_waveform(60.0).numpy()
    with soundfile.SoundFile(work / "three_hours.flac", "w", 16000, 1) as file:
        for _ in range(180):
            file.write(minute)
    rows = []
    for level in ("clip", "frame"):
        started = time.perf_counter()
        command = [sys.executable, "-m", "src.embed", str(work / "three_hours.flac"), "--level", level]
        command += ["--encoder", str(work / "encoder"), "--out", str(work / f"{level}.parquet")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        minutes = (time.perf_counter() - started) / 60
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        rows.append([level, pq.read_metadata(work / f"{level}.parquet").num_rows, f"{minutes:.1f}", f"{peak:.2f}"])
    return table(["level", "rows", "minutes", "largest peak so far, GB"], rows)


if __name__ == "__main__":
    main()
