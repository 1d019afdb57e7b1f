"""Tables of an evaluation as Markdown, and as one self-contained HTML page with a plot."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from src.evaluation.methods import MAJORITY
from src.evaluation.table import Table, columns, domain_means, merge_seeds, methods_of
from src.pages.document import breakable, chart, document, table


def markdown(found: Sequence[Table], errors: Mapping[str, str]) -> str:
    """The tables as Markdown, then what could not be scored."""
    parts = []
    for each in found:
        lines = [each.header, ["---"] * len(each.header)]
        lines += [
            [f"**{cell}**" if number in each.emphasized and cell else cell for cell in line]
            for number, line in enumerate(each.lines)
        ]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"## {each.title}\n\n{each.what}\n\n{body}\n")
    if errors:
        parts.append("## Not scored\n\n" + "\n".join(f"- {error}" for error in errors.values()) + "\n")
    return "\n".join(parts)


def page(found: Sequence[Table], rows: Sequence[Mapping[str, Any]], errors: Mapping[str, str]) -> str:
    """The same as HTML, with a plot of each method's means."""
    parts = [chart("Mean score of each encoder by domain, with 95 % intervals", lambda: plot(rows))] if rows else []
    for each in found:
        lines = [[html.escape(cell) for cell in line] for line in each.lines]
        parts.append(f"<h2>{html.escape(each.title)}</h2>\n<p>{html.escape(each.what)}</p>")
        parts.append(table(each.title, each.header, lines, each.emphasized))
    if errors:
        listed = "".join(f"<li>{breakable(error)}</li>" for error in errors.values())
        parts.append(f"<h2>Not scored</h2>\n<ul>{listed}</ul>")
    return document("Evaluation", "\n".join(parts))


def plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """For each method, the mean of each domain and encoder with its interval."""
    rows = merge_seeds(rows)
    methods = methods_of(rows)
    line = {"elinewidth": 0.8, "ecolor": matplotlib.rcParams["text.color"]}
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
            axes.bar(x, y, 0.8 / len(encoders), yerr=error, label=encoder, error_kw=line)
        axes.set_xticks(range(len(means)), list(means))
        axes.set(title=method, ylabel="mean score")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
