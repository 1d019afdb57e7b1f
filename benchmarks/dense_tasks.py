"""Timestamp tasks from folders of single sounds: scenes of 4 s, in which the sounds and their times are to be found.

    python -m benchmarks.dense_tasks tasks/env_impact tasks/music_drums --out dense
    python -m src.evaluate dense --encoder runs/quickstart --method linear --layers 0+6+last --out dense_scores

A folder has a labels.csv with one label a file and a split or a fold; the scenes of a split have its files only. A
scene has two to four sounds of up to 1 s, their peaks 10 to 30 % of full scale, on white noise of 0.1 %.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile

from src.audio.decode import SAMPLE_RATE, decode

SCENES, SECONDS = 80, 4.0  # a split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", type=Path, metavar="TASK")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for task in options.tasks:
        make(task, options.out / f"{task.name}_events")


def make(task: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with open(task / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = "fold" if "fold" in rows[0] else "split"
    parts = defaultdict(list)
    for row in rows:
        parts[row[column]].append((task / row["filename"], row["label"]))
    lines = [f"filename,onset,offset,label,{column}"]
    for part, sounds in sorted(parts.items()):
        for number in range(SCENES):
            name = f"{part}-{number:03}.flac"
            scene = 0.001 * random.standard_normal(round(SECONDS * SAMPLE_RATE)).astype(np.float32)
            for which in random.choice(len(sounds), size=random.integers(2, 5), replace=False):
                path, label = sounds[which]
                sound = decode(path, 0.0, 1.0)
                begin = random.integers(0, len(scene) - len(sound) + 1)
                gain = random.uniform(0.1, 0.3) / max(float(np.abs(sound).max()), 1e-3)
                scene[begin : begin + len(sound)] += gain * sound
                onset, offset = begin / SAMPLE_RATE, (begin + len(sound)) / SAMPLE_RATE
                lines.append(f"{name},{onset:.4f},{offset:.4f},{label},{part}")
            soundfile.write(folder / name, np.clip(scene, -1, 1), SAMPLE_RATE)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
