"""The report of a classifier as one self-contained HTML page: scores, plots, audio players."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import soundfile
from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
figure svg { background: white; border-radius: 6px; max-width: 100%; height: auto; }
audio { vertical-align: middle; height: 2rem; }
"""


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
        players: `player` of each mistake, by path.
    """
    parts = [_score_table(result)]
    if "folds" in result:
        parts += ["<h2>Folds</h2>", _fold_table(result["folds"])]
    pictures = [_curves(curves)] if curves else []
    if result.get("calibration"):
        pictures.append(_calibration(result["calibration"]))
    if "confusion" in result:
        pictures.append(_confusion(result["confusion"], [each["name"] for each in result["classes"]]))
    parts.append("".join(f"<figure>{picture}</figure>" for picture in pictures))
    parts += ["<h2>Classes</h2>", _class_table(result["classes"], result.get("unit", "clips"))]
    if result.get("mistakes"):
        parts += ["<h2>Worst mistakes</h2>", _mistake_table(result["mistakes"], players)]
    if result.get("notes"):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{html.escape(note)}</li>" for note in result["notes"]), "</ul>"]
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
{body}
</html>
"""


def player(samples: np.ndarray, sample_rate: int) -> str:
    """An `<audio>` element with the audio embedded as FLAC. samples: (T,) in [-1, 1]."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/flac;base64,{data}"></audio>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; those that start with a digit are right-aligned."""
    lines = "".join(
        "<tr>"
        + "".join(f'<td class="number">{c}</td>' if c[:1].isdigit() else f"<td>{c}</td>" for c in row)
        + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>\n{lines}</tbody></table>"


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
    head = ["", f"test, {result['clips']} clips", "95 % interval (bootstrap)", "folds: mean ± deviation"]
    return _table(head, rows) if "mean" in result else _table(head[:3], [row[:3] for row in rows])


def _fold_table(folds: Sequence[Mapping[str, Any]]) -> str:
    names = list(folds[0]["scores"])
    rows = [[str(each["fold"]), str(each["clips"]), *(f"{each['scores'][n]:.3f}" for n in names)] for each in folds]
    return _table(["fold", "clips", *names], rows)


def _class_table(classes: Sequence[Mapping[str, Any]], unit: str) -> str:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = [[html.escape(c["name"]), str(c["clips"]), share(c["precision"]), share(c["recall"])] for c in classes]
    return _table(["class", unit, "precision", "recall"], rows)


def _mistake_table(mistakes: Sequence[Mapping[str, Any]], players: Mapping[str, str]) -> str:
    rows = [
        [html.escape(each["label"]), html.escape(each["predicted"]) or "nothing", f"{each['probability']:.3f}",
         players.get(each["path"], "cannot be read"), html.escape(each["path"])]
        for each in mistakes
    ]  # fmt: skip
    return _table(["true", "predicted", "probability", "audio", "path"], rows)


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", title="learning curve")
    axes.legend()
    return _svg(figure)


def _calibration(calibration: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7")
    bins = calibration["bins"]
    axes.plot([b["probability"] for b in bins], [b["right"] for b in bins], marker="o")
    axes.set(xlabel="predicted probability", ylabel="fraction correct", title="calibration", xlim=(0, 1), ylim=(0, 1))
    return _svg(figure)


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    counts = np.array(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.35 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        for true, predicted in np.argwhere(counts).tolist():
            color = "white" if share[true, predicted] > 0.6 else "black"
            axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)  # "$" in a name is no formula
        axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true", title="confusion matrix (clips; color: share of the row)")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
