"""The report of a classifier as one HTML page that needs nothing else: numbers, pictures, players."""

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
    found: Mapping[str, Any],
    curves: Mapping[str, Sequence[tuple[float, float]]],
    players: Mapping[str, str],
) -> str:
    """HTML.

    Args:
        found: as `report` gives it, with "floors", and where there were folds "folds", "mean" and "deviation".
        curves: of each value logged, (step, value). players: `player` of the paths of the mistakes.
    """
    parts = [_score_table(found)]
    if "folds" in found:
        parts += ["<h2>Folds</h2>", _fold_table(found["folds"])]
    pictures = [_curves(curves)] if curves else []
    if found.get("calibration"):
        pictures.append(_calibration(found["calibration"]))
    if "confusion" in found:
        pictures.append(_confusion(found["confusion"], [each["name"] for each in found["classes"]]))
    parts.append("".join(f"<figure>{picture}</figure>" for picture in pictures))
    parts += ["<h2>Classes</h2>", _class_table(found["classes"], found.get("unit", "clips"))]
    if found.get("mistakes"):
        parts += ["<h2>Worst mistakes</h2>", _mistake_table(found["mistakes"], players)]
    if found.get("notes"):
        parts += ["<h2>Notes</h2><ul>", *(f"<li>{html.escape(note)}</li>" for note in found["notes"]), "</ul>"]
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
    """An `<audio>` element that holds the sound itself (FLAC). samples: (T,) in [-1, 1]."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/flac;base64,{data}"></audio>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; those that begin with a digit stand to the right."""
    lines = "".join(
        "<tr>"
        + "".join(f'<td class="number">{c}</td>' if c[:1].isdigit() else f"<td>{c}</td>" for c in row)
        + "</tr>\n"
        for row in rows
    )
    return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>\n{lines}</tbody></table>"


def _score_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, value in found["scores"].items():
        low, high = found["intervals"].get(name, (None, None))
        interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
        folds = f"{found['mean'][name]:.3f} ± {found['deviation'][name]:.3f}" if "mean" in found else ""
        rows.append([html.escape(name), f"{value:.3f}", interval, folds])
    rows += [[f"floor: {html.escape(name)}", f"{value:.3f}", "", ""] for name, value in found.get("floors", {}).items()]
    if found.get("calibration"):
        rows.append(["calibration error", f"{found['calibration']['error']:.3f}", "", ""])
    head = ["", f"test, {found['clips']} clips", "95 % interval (bootstrap)", "folds: mean ± deviation"]
    return _table(head, rows) if "mean" in found else _table(head[:3], [row[:3] for row in rows])


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
         players.get(each["path"], "cannot be read now"), html.escape(each["path"])]
        for each in mistakes
    ]  # fmt: skip
    return _table(["is", "predicted", "probability", "sound", "path"], rows)


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", title="learning curve")
    axes.legend()
    return _svg(figure)


def _calibration(found: Mapping[str, Any]) -> str:
    figure = Figure(figsize=(4.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7")
    bins = found["bins"]
    axes.plot([b["probability"] for b in bins], [b["right"] for b in bins], marker="o")
    axes.set(xlabel="probability given", ylabel="share that was right", title="calibration", xlim=(0, 1), ylim=(0, 1))
    return _svg(figure)


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    counts = np.array(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, 2.5 + 0.35 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 40:
        for true, said in np.argwhere(counts).tolist():
            colour = "white" if share[true, said] > 0.6 else "black"
            axes.text(said, true, str(counts[true, said]), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="is", title="confusions (clips; colour: share of the row)")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
