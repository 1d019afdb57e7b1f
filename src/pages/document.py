"""The frame of a page, its tables and its charts: plain strings of HTML."""

import html
import io
import itertools
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

# Of series and classes: each is visible (3:1) on the light and on the dark page.
COLORS = ("#3b7dd8", "#d9730d", "#2e9e5b", "#d64545", "#9061d9", "#17939c", "#d1519c", "#8f7a1e")
_TEXT_COLOR = "#010203"  # stands for the page's text color in a chart
_CHART_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _TEXT_COLOR),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}
_NUMBER = re.compile(r"[+−-]?\d|–$")
_LEAST_SCALE = 0.75  # a narrower screen scrolls the chart, for its text to stay readable
_chart_numbers = itertools.count(1)


def document(title: str, body: str, script: str = "") -> str:
    """A whole page, which needs no other file. title: plain text. body: HTML."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    code = f"<script>\n{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{breakable(title)}</h1>
{body}
</main>
{code}</body>
</html>
"""


def breakable(text: str) -> str:
    """Plain text as HTML; a path may be broken behind its separators, a word is not."""
    return "<wbr>".join(html.escape(part) for part in re.split(r"(?<=[/\\_:])(?=\w)", text))


def table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]], emphasized: Collection[int] = ()) -> str:
    """A table in a box that scrolls.

    Args:
        name: for screen readers; unlike that of the page's other tables.
        head: plain text. rows: cells of HTML; a column whose first filled cell is a number is right-aligned.
        emphasized: indices of rows in bold.
    """
    kinds = [_column_class([row[column] for row in rows]) for column in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{html.escape(cell)}</th>' for cell, kind in zip(head, kinds, strict=True))
    lines = "\n".join(
        f"<tr{' class=mean' if number in emphasized else ''}>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return _scroll(name, f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>")


def _column_class(cells: Sequence[str]) -> str:
    first = next((cell for cell in cells if cell), "")
    if "<wbr>" in first:
        return ' class="path"'
    return ' class="number"' if _NUMBER.match(first) else ""


def chart(name: str, build: Callable[[], Figure]) -> str:
    """A Matplotlib figure as SVG in a box that scrolls; text and axes have the color of the page's text.

    Args:
        name: what it shows, for screen readers. build: creates the figure, in the style of the pages.
    """
    text = io.StringIO()
    with matplotlib.rc_context(_CHART_STYLE):
        figure = build()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT_COLOR, "currentColor")
    prefix = f"chart{next(_chart_numbers)}-"  # ids are unique on a page
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    width = round(float(figure.get_figwidth()) * 96)
    style = f"max-width:{width}px;min-width:{round(width * _LEAST_SCALE)}px"
    svg = svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{html.escape(name)}" style="{style}" ', 1)
    return _scroll(name, svg)


def _scroll(name: str, content: str) -> str:
    return f'<div class="scroll" role="region" aria-label="{html.escape(name)}" tabindex="0">{content}</div>'
