"""Paired comparison of two encoders on the same tasks, from the rows of one or two results.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.errors import UserError
from src.evaluation.intervals import Interval, percentile_interval, sign_test


class Comparison(NamedTuple):
    """tasks: difference of the score of each common task. mean: over them. sign_p: two-sided, of the sign test.
    better, worse: numbers of tasks; equal ones are neither."""

    tasks: dict[str, Interval]
    mean: Interval
    better: int
    worse: int
    sign_p: float


def compare(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Comparison:
    """`new` minus `old`, of one encoder and method each; tasks that only one of them has are left out.

    The bootstrap samples of a task were drawn with the same clips for both, so that their difference is paired.
    """
    before = {row["task"]: row for row in old}
    tasks: dict[str, Interval] = {}
    samples = []
    for row in new:
        other = before.get(row["task"])
        if other is None or other["metric"] != row["metric"] or np.isnan(row["score"] - other["score"]):
            continue
        difference = np.array(row["samples"]) - np.array(other["samples"])
        tasks[row["task"]] = percentile_interval(row["score"] - other["score"], difference)
        samples.append(difference)
    values = [interval.value for interval in tasks.values()]
    mean = percentile_interval(float(np.mean(values)), np.mean(samples, axis=0)) if values else Interval(0.0, 0.0, 0.0)
    better, worse = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return Comparison(tasks, mean, better, worse, sign_test(values))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Raises: UserError: no such file, or not one that `python -m src.evaluate` wrote."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        for row in rows:
            row["score"] = _number(row["score"])
            row["samples"] = [_number(value) for value in row["samples"]]
    except FileNotFoundError:
        raise UserError(f"there is no file {file} (looked in {Path.cwd()}); give a results.json") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is not a results.json of python -m src.evaluate, or it is damaged") from None
    return rows


def _number(value: float | None) -> float:
    """null is NaN."""
    return float("nan") if value is None else float(value)


def pairs(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Encoders to compare: those of the same name; if there are none, all of `old` with all of `new`. No floors."""
    before, after = (list(dict.fromkeys(r["encoder"] for r in rows if not r["floor"])) for rows in (old, new))
    common = [(name, name) for name in before if name in after]
    return common or [(first, second) for first in before for second in after]
