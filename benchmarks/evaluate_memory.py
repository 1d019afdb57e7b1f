"""Memory and time of an evaluation by number of clips: k-NN and linear probe on a made-up task.

    python -m benchmarks.evaluate_memory --clips 4000 40000

Tones and noise of 0.1 to 0.3 s in four classes, an encoder of two blocks and the mel floor; half of the clips are for
training. Each count runs in a process of its own, which prints clips, seconds and the peak of its memory.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from src.evaluation.frozen import FrozenViT
from src.evaluation.run import Settings, evaluate
from src.evaluation.untrained import MelStatistics
from src.models.initialize import initialize
from src.models.vit import AudioViT

SPLITS = ("train", "train", "valid", "test")
PITCHES = {"low": 300.0, "middle": 1000.0, "high": 3000.0, "noise": 0.0}


def write_task(folder: Path, clips: int) -> None:
    random, labels = np.random.default_rng(0), list(PITCHES)
    lines = ["filename,label,split"]
    for number in range(clips):
        label = labels[number // len(SPLITS) % len(labels)]
        time_seconds = np.arange(random.integers(1600, 4801)) / 16000
        tone = np.sin(2 * np.pi * PITCHES[label] * random.uniform(0.9, 1.1) * time_seconds)
        samples = (0.2 * tone + 0.05 * random.normal(size=len(tone))).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", samples, 16000, "PCM_16")
        lines.append(f"{number}.wav,{label},{SPLITS[number % len(SPLITS)]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(clips: int) -> float:
    """Peak of this process in MB, which is printed too."""
    encoder = AudioViT(48, 2, 3)
    initialize(encoder, 0, "encoder")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUDIO_ENCODER_CACHE"] = f"{folder}/cache"
        task = Path(folder) / "tones"
        task.mkdir()
        write_task(task, clips)
        started = time.monotonic()
        settings = Settings(["knn", "linear"], Path(folder) / "out", shown=False)
        rows, errors = evaluate([str(task)], [FrozenViT("two blocks", encoder), MelStatistics()], settings)
        seconds = time.monotonic() - started
    assert not errors and len(rows) == 5, errors
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = ", ".join(f"{row['encoder']} {row['method']} {row['score']:.3f}" for row in rows)
    print(f"{clips} clips: {seconds:.0f} s, peak {peak:.0f} MB; {scores}", flush=True)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[4000, 40000])
    counts = parser.parse_args().clips
    if len(counts) == 1:
        measure(counts[0])
        return
    for count in counts:
        subprocess.run([sys.executable, "-m", "benchmarks.evaluate_memory", "--clips", str(count)], check=True)


if __name__ == "__main__":
    main()
