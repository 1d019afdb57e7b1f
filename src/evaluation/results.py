"""Results of an evaluation as plain values: a row per task, encoder and method, from the records of its folds."""

import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch

from src.atomic import writing
from src.evaluation.intervals import percentile_interval
from src.evaluation.methods import MAJORITY, METHODS
from src.evaluation.page import markdown, page, plot
from src.evaluation.table import tables
from src.evaluation.units import Unit


def make_row(unit: Unit, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The score is the mean over folds, and so are the bootstrap samples; the interval is of 95 %."""
    task, primary = unit.task, unit.task.metrics[0]
    means = {metric: float(np.mean([record["test"][metric] for record in records])) for metric in task.metrics}
    samples = np.mean([record["samples"] for record in records], axis=0)
    _, low, high = percentile_interval(means[primary], samples)
    views = [record["view"] for record in records]
    return {
        "task": task.name,
        "path": task.path,
        "layout": task.layout,
        "domain": task.domain,
        "kind": "timestamp" if task.timestamps else task.kind,
        "classes": len(task.class_names),
        "encoder": unit.encoder,
        "floor": unit.floor,
        "method": unit.method,
        "what": "class frequencies of train" if unit.method == MAJORITY else METHODS[unit.method].what,
        "metric": primary,
        "score": means[primary],
        "interval": [low, high],
        "metrics": means,
        "views": {view: views.count(view) for view in dict.fromkeys(views)},
        "candidates": list(unit.folders),
        "seed": unit.seed,
        "notes": list(task.notes),
        "folds": [{key: value for key, value in record.items() if key != "samples"} for record in records],
        "samples": [round(float(value), 6) for value in samples],
    }


def _strict(value: Any) -> Any:
    """Plain values with null for numbers that JSON does not have: NaN of undefined scores, infinite d'."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    return [_strict(each) for each in value] if isinstance(value, list | tuple) else value


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def write_results(out: Path, results: dict[str, Any]) -> str:
    """Write results.json, .md, .html and .png; returns the Markdown.

    Args:
        results: rows, errors, options and versions.
    """
    rows, errors = results["rows"], results["errors"]
    found = tables(rows)
    text = markdown(found, errors)
    contents = {"results.json": json.dumps(_strict(results), indent=1, allow_nan=False), "results.md": text}
    contents["results.html"] = page(found, rows, errors)
    for name, content in contents.items():
        with writing(out / name) as file:
            file.write_text(content, encoding="utf-8")
    if rows:
        with writing(out / "results.png") as file:
            plot(rows).savefig(file, format="png", dpi=120)
    return text
