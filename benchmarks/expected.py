"""What a normal run looks like: curves and final figures of the presets that two cores finish on the demo.

    python -m benchmarks.expected --seeds 3        (8 minutes per seed on two cores)

Trains the quickstart, the quickstart with the paper's recipe, and both kinds of classifier from the quickstart's
encoder. docs/expected/PRESET.csv has a row per step and figure: mean, lowest and highest over the seeds. The tables
printed show them after 1, 10 and 100 % of the steps, with the floors of the last row.
"""

import argparse
import csv
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.report import machine_and_date, table
from src import train

PRESETS = {
    "quickstart": ["--config", "configs/quickstart.yaml"],
    "paper": ["--config", "configs/quickstart.yaml", "--config", "configs/pretrain/paper.yaml"],
    "linear": ["--config", "configs/classify/linear.yaml", "--config", "configs/data/demo.yaml"],
    "finetune": ["--config", "configs/classify/finetune.yaml", "--config", "configs/data/demo.yaml"],
}
FIGURES = ("loss", "accuracy", "knn", "linear")  # the last part of the names that are kept
FOLDER = Path(__file__).parents[1] / "docs" / "expected"

Points = dict[str, dict[int, list[float]]]  # of a figure: step, values of the seeds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    points: dict[str, Points] = {name: defaultdict(lambda: defaultdict(list)) for name in PRESETS}
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(options.seeds):
            for name, words in PRESETS.items():
                if name in ("linear", "finetune"):
                    words = [*words, f"model.init_from={runs}/quickstart-{seed}"]
                settings = [f"runs_folder={runs}", f"name={name}-{seed}", f"seed={seed}", "tracking.wandb=null"]
                if train.main(["fit", *words, *settings, "trainer.log_every_n_steps=1"]):
                    sys.exit(1)
                read_points(Path(runs, f"{name}-{seed}", "metrics.csv"), points[name])
    print(machine_and_date(), f"{options.seeds} seeds")
    FOLDER.mkdir(exist_ok=True)
    for name, figures in points.items():
        write_curves(FOLDER / f"{name}.csv", figures)
        print(f"\n{name}\n{summary(figures)}")


def read_points(metrics: Path, points: Points) -> None:
    with open(metrics, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for figure, value in row.items():
                if value and (figure.startswith("floor/") or figure.rpartition("/")[2] in FIGURES):
                    steps = int(row["step"]) + (not figure.startswith("test/"))  # counts from 0, but after the last one
                    points[figure][steps].append(float(value))


def write_curves(path: Path, points: Points) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["steps", "figure", "mean", "lowest", "highest"])
        for figure in sorted(points):
            for step, values in sorted(points[figure].items()):
                of_seeds = np.mean(values), min(values), max(values)
                writer.writerow([step, figure, *(f"{each:.4f}" for each in of_seeds)])


def summary(points: Points) -> str:
    """The figures near 1, 10 and 100 % of the steps."""
    last = max(max(steps) for steps in points.values())
    rows = []
    for figure in sorted(points):
        cells = []
        for share in (0.01, 0.1, 1.0):
            step = min(points[figure], key=lambda each, share=share: abs(each - share * last))  # type: ignore[misc]
            near = abs(step - share * last) <= max(1, 0.05 * share * last)
            values = points[figure][step]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if near else "")
        rows.append([figure, *cells])
    return table(["figure", *(f"after {max(1, round(share * last))} steps" for share in (0.01, 0.1, 1))], rows)


if __name__ == "__main__":
    main()
