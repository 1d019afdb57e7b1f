"""Rows of an evaluation as Markdown: per method, tasks by encoders, with domain means."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from src.evaluation.intervals import percentile_interval
from src.evaluation.methods import MAJORITY

DOMAINS = ("environment", "speech", "music")  # as the paper groups them


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table per method."""
    parts = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != MAJORITY):
        chosen = [row for row in rows if row["method"] in (method, MAJORITY)]
        what = next(row["what"] for row in rows if row["method"] == method)
        parts.append(f"## {method}\n\n{what}.\n\n{_table(chosen)}\n")
    return "\n".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    encoders = columns(rows)
    cells = {(row["task"], row["encoder"]): cell(row["score"], row["interval"]) for row in rows}
    tasks = dict.fromkeys((row["task"], row["metric"]) for row in rows)
    lines = [["task", "metric", *encoders]]
    lines += [[task, metric, *(cells.get((task, encoder), "–") for encoder in encoders)] for task, metric in tasks]
    for name, means in domain_means(rows).items():
        lines.append([f"**{name}**", "mean", *(cell(*means[e]) if e in means else "–" for e in encoders)])
    return "\n".join(_line(line) for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Encoders, then floors."""
    return list(dict.fromkeys(row["encoder"] for row in sorted(rows, key=lambda row: row["floor"])))


def domain_means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, list[float]]]]:
    """Mean over the tasks of a domain, and of all tasks, of each encoder that has them all, with its interval."""
    groups = {name: [row for row in rows if row["domain"] == name] for name in DOMAINS}
    groups["all tasks"] = list(rows)
    result = {}
    for name, group in groups.items():
        tasks = {row["task"] for row in group}
        means = {}
        for encoder in columns(group):
            own = [row for row in group if row["encoder"] == encoder]
            if len(own) == len(tasks) and own:
                value = float(np.mean([row["score"] for row in own]))
                _, low, high = percentile_interval(value, np.mean([row["samples"] for row in own], axis=0))
                means[encoder] = (value, [low, high])
        if means:
            result[f"{name} ({len(tasks)})"] = means
    return result


def cell(value: float, interval: Sequence[float]) -> str:
    if math.isnan(value):
        return "undefined"
    low, high = interval
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"
