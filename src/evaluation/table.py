"""Rows of an evaluation as tables: per method, tasks by encoders with domain means; published results; differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from src.evaluation import published
from src.evaluation.compare import compare
from src.evaluation.intervals import percentile_interval
from src.evaluation.methods import MAJORITY
from src.evaluation.tasks.known import HEAR_TASKS, KNOWN

DOMAINS = ("environment", "speech", "music")  # in the order of the paper
HARDEST_FLOOR = "random-patches"
Row = Mapping[str, Any]


class Table(NamedTuple):
    """cells are plain text. emphasized: indices of lines that hold means."""

    title: str
    what: str
    header: list[str]
    lines: list[list[str]]
    emphasized: Sequence[int] = ()


def tables(rows: Sequence[Row]) -> list[Table]:
    """All tables of an evaluation, in the order of the page."""
    rows = merge_seeds(rows)
    found = []
    for method in methods_of(rows):
        found.append(_scores(method, rows))
        found += _published(method, rows)
    found += [table for table in (_readouts(rows), *_differences(rows), _assumptions(rows)) if table.lines]
    return found


def methods_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["method"] != MAJORITY))


def columns(rows: Sequence[Row]) -> list[str]:
    """Encoders, then floors."""
    return list(dict.fromkeys(row["encoder"] for row in sorted(rows, key=lambda row: row["floor"])))


def merge_seeds(rows: Sequence[Row]) -> list[Row]:
    """The untrained encoders of several seeds as one row: mean of the scores and their standard deviation."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        name = row["encoder"].rpartition(" ")[0] if row["encoder"].startswith("random-encoder ") else row["encoder"]
        groups.setdefault((row["task"], row["method"], name), []).append(row)
    merged: list[Row] = []
    for (_, _, name), group in groups.items():
        if len(group) == 1:
            merged += group
            continue
        scores = [row["score"] for row in group]
        samples = np.mean([row["samples"] for row in group], axis=0).tolist()
        title = f"{name} ({len(group)} seeds)"
        merged.append(
            {**group[0], "encoder": title, "score": float(np.mean(scores)), "samples": samples}
            | {"deviation": float(np.std(scores, ddof=1))}
        )
    return merged


def domain_means(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, list[float]]]]:
    """Mean over the tasks of a domain, and of all tasks, of each encoder that has them all, with its interval."""
    groups = {name: [row for row in rows if row["domain"] == name] for name in DOMAINS}
    groups["all tasks"] = list(rows)
    result = {}
    for name, group in groups.items():
        tasks = {row["task"] for row in group}
        means = {}
        for encoder in columns(group):
            own = [row for row in group if row["encoder"] == encoder]
            if len(own) == len(tasks):
                value = float(np.mean([row["score"] for row in own]))
                _, low, high = percentile_interval(value, np.mean([row["samples"] for row in own], axis=0))
                means[encoder] = (value, [low, high])
        if means:
            result[f"{name}, mean of {len(tasks)}"] = means
    return result


def cell(value: float, interval: Sequence[float], deviation: float | None = None) -> str:
    if math.isnan(value):
        return "undefined"
    if deviation is not None:
        return f"{value:.3f} ± {deviation:.3f}"
    low, high = interval
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _scores(method: str, rows: Sequence[Row]) -> Table:
    chosen = [row for row in rows if row["method"] in (method, MAJORITY)]
    tasks = dict.fromkeys((row["task"], row["metric"]) for row in rows if row["method"] == method)
    chosen = [row for row in chosen if (row["task"], row["metric"]) in tasks]
    encoders = columns(chosen)
    cells = {(r["task"], r["encoder"]): cell(r["score"], r["interval"], r.get("deviation")) for r in chosen}
    lines = [[task, metric, *(cells.get((task, encoder), "–") for encoder in encoders)] for task, metric in tasks]
    means = domain_means(chosen)
    lines += [
        [name, "", *(cell(*values[encoder]) if encoder in values else "–" for encoder in encoders)]
        for name, values in means.items()
    ]
    what = next(row["what"] for row in rows if row["method"] == method)
    what += ". In brackets 95 % bootstrap intervals over test clips; ± is the standard deviation over seeds."
    return Table(method, what, ["task", "metric", *encoders], lines, range(len(tasks), len(lines)))


def _published(method: str, rows: Sequence[Row]) -> list[Table]:
    """Published results for the same tasks, in percent, if there are any."""
    tasks = {row["task"] for row in rows if row["method"] == method}
    found = []
    if method == "mlp" and tasks & set(HEAR_TASKS):
        lines = [
            [name, *(f"{values[domain]:.1f}" for domain in DOMAINS)] for name, values in published.HEAR_DOMAINS.items()
        ]
        what = f"{published.SOURCE}. Percent; means over all 4, 6 and 8 tasks of HEAR; not measured here."
        found.append(Table("mlp, published domain means", what, ["encoder", *DOMAINS], lines))
    shown = [task for task in next(iter(published.KNN.values())) if task in tasks]
    if method in ("knn", "knn-raw") and shown:
        lines = [
            [name, *(f"{values[task]:g}" if task in values else "–" for task in shown)]
            for name, values in published.KNN.items()
        ]
        what = f"{published.SOURCE}. Percent; features without trained parameters; not measured here."
        found.append(Table(f"{method}, published", what, ["encoder", *(KNOWN[t].title for t in shown)], lines))
    return found


def _readouts(rows: Sequence[Row]) -> Table:
    lines = [
        [row["task"], row["encoder"], row["method"], ", ".join(f"{v} ({n})" for v, n in row["views"].items())]
        for row in rows
        if len(row["candidates"]) > 1
    ]
    what = (
        "Layers and pooling with the best score on validation, and in how many folds; candidates are in results.json."
    )
    return Table("chosen read-outs", what, ["task", "encoder", "method", "chosen"], lines)


def _differences(rows: Sequence[Row]) -> list[Table]:
    """Of the encoders from the first one, and of each encoder from the hardest floor."""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows if not row["floor"]))
    pairs = [(encoders[0], other) for other in encoders[1:]] if encoders else []
    pairs += [(HARDEST_FLOOR, encoder) for encoder in encoders]
    found = []
    for before, after in pairs:
        old = [row for row in rows if row["encoder"] == before]
        new = [row for row in rows if row["encoder"] == after]
        found.append(difference_table(f"{after} minus {before}", old, new))
    return found


def difference_table(title: str, old: Sequence[Row], new: Sequence[Row]) -> Table:
    """Paired differences by task and method; both sets of rows have one encoder each."""
    lines, emphasized = [], []
    for method in methods_of(new):
        result = compare([r for r in old if r["method"] == method], [r for r in new if r["method"] == method])
        for task, (value, low, high) in result.tasks.items():
            lines.append([method, task, f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", ""])
        if result.tasks:
            value, low, high = result.mean
            signs = f"{result.better} better, {result.worse} worse, p = {result.sign_p:.3f}"
            emphasized.append(len(lines))
            mean = f"mean of {len(result.tasks)}"
            lines.append([method, mean, f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", signs])
    what = "Paired differences with 95 % bootstrap intervals (the same clips are drawn for both); sign test over tasks."
    return Table(title, what, ["method", "task", "difference", "sign test"], lines, emphasized)


def _assumptions(rows: Sequence[Row]) -> Table:
    notes = dict.fromkeys((row["task"], note) for row in rows for note in row["notes"])
    return Table("assumptions", "What was assumed about the tasks.", ["task", "note"], [list(each) for each in notes])
