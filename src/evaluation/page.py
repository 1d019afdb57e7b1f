"""Tables of an evaluation as Markdown, and as one self-contained HTML page with a plot."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from src.evaluation.methods import MAJORITY
from src.evaluation.table import Table, columns, domain_means, merge_seeds, methods_of

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #8884; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
tr.mean td { font-weight: 600; }
svg { background: white; border-radius: 6px; max-width: 100%; height: auto; }
"""


def markdown(found: Sequence[Table], errors: Mapping[str, str]) -> str:
    """The tables as Markdown, then what could not be scored."""
    parts = []
    for table in found:
        lines = [table.header, ["---"] * len(table.header)]
        lines += [
            [f"**{each}**" if number in table.emphasized and each else each for each in line]
            for number, line in enumerate(table.lines)
        ]
        body = "\n".join("| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines)
        parts.append(f"## {table.title}\n\n{table.what}\n\n{body}\n")
    if errors:
        parts.append("## Not scored\n\n" + "\n".join(f"- {error}" for error in errors.values()) + "\n")
    return "\n".join(parts)


def page(found: Sequence[Table], rows: Sequence[Mapping[str, Any]], errors: Mapping[str, str]) -> str:
    """The same as HTML, with a plot of each method's means."""
    parts = []
    for table in found:
        head = "".join(f"<th>{html.escape(each)}</th>" for each in table.header)
        body = "\n".join(
            f"<tr{' class=mean' if number in table.emphasized else ''}>"
            + "".join(f"<td>{html.escape(each)}</td>" for each in line)
            + "</tr>"
            for number, line in enumerate(table.lines)
        )
        parts.append(
            f"<h2>{html.escape(table.title)}</h2><p>{html.escape(table.what)}</p>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'
        )
    if errors:
        listed = "".join(f"<li>{html.escape(error)}</li>" for error in errors.values())
        parts.append(f"<h2>Not scored</h2><ul>{listed}</ul>")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evaluation</title>
<style>{_STYLE}</style>
<h1>Evaluation</h1>
{svg(plot(rows)) if rows else ""}
{"".join(parts)}
</html>
"""


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """For each method, the mean of each domain and encoder with its interval."""
    rows = merge_seeds(rows)
    methods = methods_of(rows)
    figure = Figure(figsize=(10, 1 + 3 * len(methods)), layout="constrained")
    for axes, method in zip(figure.subplots(len(methods), squeeze=False)[:, 0], methods, strict=True):
        scored = {row["task"] for row in rows if row["method"] == method}
        chosen = [row for row in rows if row["method"] in (method, MAJORITY) and row["task"] in scored]
        means, encoders = domain_means(chosen), columns(chosen)
        for number, encoder in enumerate(encoders):
            have = [(place, values[encoder]) for place, values in enumerate(means.values()) if encoder in values]
            x = np.array([place for place, _ in have]) + (number + 0.5) / len(encoders) * 0.8 - 0.4
            y = np.array([value for _, (value, _) in have])
            low, high = (np.array([bounds[side] for _, (_, bounds) in have]) for side in (0, 1))
            error = np.clip(np.nan_to_num(np.stack([y - low, high - y])), 0, None)
            axes.bar(x, y, 0.8 / len(encoders), yerr=error, label=encoder, error_kw={"elinewidth": 0.8})
        axes.set_xticks(range(len(means)), list(means))
        axes.set(title=method, ylabel="mean score")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
