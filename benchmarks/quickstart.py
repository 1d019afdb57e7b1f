"""Accuracies of the quickstart over several seeds, compared with majority, mel statistics and the untrained encoder.

python -m benchmarks.quickstart          (4 minutes per seed on two cores)
"""

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import machine_and_date, table
from src.train import main as train

ROWS = ("majority", "mel", "untrained", "trained")


def scores(metrics: Path) -> dict[str, float]:
    """Last value of each floor and check in a run's metrics.csv."""
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        key.replace("floor/", "").replace("check/", "trained_"): float(row[key])
        for row in rows
        for key in row
        if key.startswith(("floor/", "check/")) and row[key]
    }


def main(seeds: int = 3) -> None:
    results = []
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(seeds):
            status = train(["fit", "--config", "configs/quickstart.yaml", f"runs_folder={runs}", f"name=s{seed}",
                            f"seed={seed}", "tracking.wandb=null"])  # fmt: skip
            if status:
                sys.exit(status)
            results.append(scores(Path(runs, f"s{seed}", "metrics.csv")))
    rows = []
    for name in ROWS:
        cells = []
        for probe in ("knn", "linear"):
            values = np.array([each[f"{name}_{probe}"] for each in results])
            cells.append(f"{values.mean():.3f} ± {values.std():.3f} ({', '.join(f'{v:.3f}' for v in values)})")
        rows.append([name, *cells])
    print(machine_and_date())
    print(table(["accuracy on the demo's test split", "k-NN", "linear probe"], rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
