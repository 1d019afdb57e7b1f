"""Classifiers compared with logistic regression on mel statistics: linear probe, fine-tuning, training from scratch.

    python -m benchmarks.classify                          the demo (data/demo)
    python -m benchmarks.classify FOLDER... --mix POOL     also labeled folders (labels.csv, with split or folds), and a
                                                           multi-label set mixed from a pool

The encoder is the quickstart's (run `make quickstart` first) or that of --encoder PATH. Every row is one
`python -m src.train fit --config configs/classify/...`; fine-tuning and training from scratch have the same number of
epochs. POOL has one folder per class. A mixture lasts 3 s and has one clip from each of one to three classes; no file
is in two splits.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.report import machine_and_date, table
from src import train
from src.audio.decode import SAMPLE_RATE, AudioError, decode

METHODS = {  # preset and overrides
    "linear probe": ("linear", []),
    "fine-tuned": ("finetune", []),
    "from scratch": (
        "finetune",
        ["model.init_from=null", "classify.method=finetune", "classify.layer_decay=1", "optimizer.lr=0.008"],
    ),
}
SPLITS = {"train": 400, "valid": 100, "test": 200}  # number of mixtures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--mix", metavar="POOL", help="folder with one folder per class, to mix clips from")
    parser.add_argument("--encoder", default="runs/quickstart")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tasks = {"demo": ["--config", "configs/data/demo.yaml"]}
        tasks |= {Path(folder).name: [f"data.path={folder}"] for folder in options.folders}
        if options.mix:
            mix(Path(options.mix), work / "mixed")
            tasks["mixed"] = [f"data.path={work / 'mixed'}"]
        rows = []
        for task, settings in tasks.items():
            for method in METHODS:
                rows.append([task, method, *measure(task, method, settings, options.encoder, work)])
    print(machine_and_date())
    print(table(["set", "method", "test", "floors", "minutes"], rows))


def measure(task: str, method: str, settings: list[str], encoder: str, work: Path) -> list[str]:
    """Score, floors and minutes of one run."""
    preset, overrides = METHODS[method]
    name, started = f"{task}-{method.replace(' ', '-')}", time.monotonic()
    if settings[0].startswith("data.path=") and has_folds(Path(settings[0].partition("=")[2])):
        overrides = [*overrides, "classify.folds=5"]
    status = train.main(
        ["fit", "--config", f"configs/classify/{preset}.yaml", *settings, f"model.init_from={encoder}",
         f"runs_folder={work}", f"name={name}", *overrides]
    )  # fmt: skip
    if status:
        sys.exit(status)
    minutes = (time.monotonic() - started) / 60
    result = json.loads((work / name / "report.json").read_text())
    score = next(iter(result["scores"]))
    value = f"{result['scores'][score]:.3f}"
    if "mean" in result:
        value = f"{result['mean'][score]:.3f} ± {result['deviation'][score]:.3f}"
    floors = ", ".join(f"{name} {floor:.3f}" for name, floor in result["floors"].items())
    return [f"{score} {value}", floors, f"{minutes:.1f}"]


def has_folds(folder: Path) -> bool:
    return "fold" in (folder / "labels.csv").read_text(encoding="utf-8-sig").splitlines()[0].lower().split(",")


def mix(pool: Path, folder: Path) -> None:
    """Write mixtures and a labels.csv; the clips of each class are divided into splits before they are mixed."""
    random = np.random.default_rng(0)
    folder.mkdir()
    classes = {each.name: sorted(f for f in each.rglob("*") if f.is_file()) for each in pool.iterdir() if each.is_dir()}
    classes = dict(sorted(classes.items(), key=lambda item: -len(item[1]))[:8])
    lines = ["filename,label,split"]
    for number, (split, clips) in enumerate(SPLITS.items()):
        files = {
            name: random.permutation(np.array(each, dtype=object))[number::3] for name, each in sorted(classes.items())
        }
        for clip in range(clips):
            chosen = sorted(random.choice(sorted(files), size=random.integers(1, 4), replace=False).tolist())
            samples = np.zeros(3 * SAMPLE_RATE, np.float32)
            for name in chosen:
                sound = read(files[name], random)
                begin = random.integers(0, len(samples) - len(sound) + 1)
                samples[begin : begin + len(sound)] += sound
            soundfile.write(folder / f"{split}{clip:03}.flac", np.clip(samples, -1, 1), SAMPLE_RATE)
            lines.append(f"{split}{clip:03}.flac,{';'.join(chosen)},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def read(files: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Up to 3 s of a random file, with its peak at a quarter of full scale."""
    while True:
        try:
            sound = decode(files[random.integers(len(files))], 0.0, 3.0)[: 3 * SAMPLE_RATE]
        except AudioError:
            continue
        return sound * (0.25 / max(float(np.abs(sound).max()), 1e-3))


if __name__ == "__main__":
    main()
