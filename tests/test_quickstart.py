"""The first thing a newcomer runs ends where the README says: above the untrained encoder, above mel, above chance."""

import csv

import pytest

from src.train import main


@pytest.mark.slow
def test_the_quickstart_ends_above_its_floors(tmp_path):
    assert main(["fit", "--config", "configs/quickstart.yaml", f"runs_folder={tmp_path}"]) == 0
    with open(tmp_path / "quickstart" / "metrics.csv", newline="", encoding="utf-8") as file:
        last = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    for probe in ("knn", "linear"):
        for floor in ("majority", "mel", "untrained"):
            assert last[f"check/{probe}"] > last[f"floor/{floor}_{probe}"], (probe, floor)
    assert last["val/loss"] < 0.5
