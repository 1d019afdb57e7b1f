"""The report of a classifier as one self-contained HTML page: scores, plots, audio players."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from src.pages.document import breakable, chart, document, table

# From nothing to a blue on which both the light and the dark page's text can be read.
_SHARE = LinearSegmentedColormap.from_list("share", ["#2f78d000", "#2f78d0c0"])


def report_page(
    title: str,
    result: Mapping[str, Any],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    players: Mapping[str, str],
) -> str:
    """The page as HTML.

    Args:
        result: of `report`, with "floors" and, after cross-validation, "folds", "mean" and "deviation".
        curves: (step, value) pairs of each logged metric.
        players: HTML of each mistake's player, by path.
    """
    parts = [_score_table(result)]
    if "folds" in result:
        parts += ["<h2>Folds</h2>", _fold_table(result["folds"])]
    charts = [chart("Learning curve", lambda: _curves(curves))] if curves else []
    if result.get("calibration"):
        charts.append(chart("Calibration", lambda: _calibration(result["calibration"])))
    if "confusion" in result:
        names = [each["name"] for each in result["classes"]]
        charts.append(chart("Confusion matrix", lambda: _confusion(result["confusion"], names)))
    parts.append(f'<div class="charts">{"".join(charts)}</div>')
    parts += ["<h2>Classes</h2>", _class_table(result["classes"], result.get("unit", "clips"))]
    if result.get("mistakes"):
        parts += ["<h2>Worst mistakes</h2>", _mistake_table(result["mistakes"], players)]
    if result.get("notes"):
        parts += ["<h2>Notes</h2>\n<ul>", *(f"<li>{breakable(note)}</li>" for note in result["notes"]), "</ul>"]
    return document(title, "\n".join(parts))


def _score_table(result: Mapping[str, Any]) -> str:
    rows = []
    for name, value in result["scores"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
        folds = f"{result['mean'][name]:.3f} ± {result['deviation'][name]:.3f}" if "mean" in result else ""
        rows.append([html.escape(name), f"{value:.3f}", interval, folds])
    rows += [
        [f"floor: {html.escape(name)}", f"{value:.3f}", "", ""] for name, value in result.get("floors", {}).items()
    ]
    if result.get("calibration"):
        rows.append(["calibration error", f"{result['calibration']['error']:.3f}", "", ""])
    head = ["score", f"test, {result['clips']} clips", "95 % interval (bootstrap)", "folds: mean ± deviation"]
    shown = len(head) if "mean" in result else 3
    return table("Scores", head[:shown], [row[:shown] for row in rows])


def _fold_table(folds: Sequence[Mapping[str, Any]]) -> str:
    names = list(folds[0]["scores"])
    rows = [
        [html.escape(str(each["fold"])), str(each["clips"]), *(f"{each['scores'][n]:.3f}" for n in names)]
        for each in folds
    ]
    return table("Folds", ["fold", "clips", *names], rows)


def _class_table(classes: Sequence[Mapping[str, Any]], unit: str) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = [[html.escape(c["name"]), str(c["clips"]), share(c["precision"]), share(c["recall"])] for c in classes]
    return table("Classes", ["class", unit, "precision", "recall"], rows)


def _mistake_table(mistakes: Sequence[Mapping[str, Any]], players: Mapping[str, str]) -> str:
    rows = [
        [html.escape(each["label"]), html.escape(each["predicted"]) or "nothing", f"{each['probability']:.3f}",
         players.get(each["path"], "cannot be read"), breakable(each["path"])]
        for each in mistakes
    ]  # fmt: skip
    return table("Worst mistakes", ["true", "predicted", "probability", "audio", "path"], rows)


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", title="learning curve")
    axes.legend()
    return figure


def _calibration(calibration: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#808080", linestyle="--")
    bins = calibration["bins"]
    axes.plot([b["probability"] for b in bins], [b["right"] for b in bins], marker="o")
    axes.set(xlabel="predicted probability", ylabel="fraction correct", title="calibration", xlim=(0, 1), ylim=(0, 1))
    return figure


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    counts = np.array(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.35 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap=_SHARE, vmin=0, vmax=1)
    if len(names) <= 40:
        for true, predicted in np.argwhere(counts).tolist():
            axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # "$" in a name is no formula
        axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set(xlabel="predicted", ylabel="true")
    figure.suptitle("confusion matrix (clips; color: share of the row)")
    return figure
