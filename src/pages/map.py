"""A map of sounds: a point a clip, near each other if they sound alike, with sound under the pointer."""

import html
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.pages.document import COLORS, document

_SIDE = 1000.0  # of the map, in its own units
_SHAPES = (
    "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0",  # circle
    "M-5.5,-5.5h11v11h-11z",  # square
    "M0,-7l7,12.5h-14z",  # triangle
)
_OTHER = "#808080"


class Point(NamedTuple):
    """audio, image: URLs; empty for a clip that cannot be read, for the reason in `problem`."""

    name: str
    label: str
    audio: str
    image: str
    problem: str = ""


def layout(embeddings: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, 2) in [0, 1], the same for the same input: t-SNE of directions, started from their PCA.

    Near points sound alike; distances between groups mean little (van der Maaten and Hinton, 2008). Fewer than five
    points, or equal ones, are laid out by PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    if (count := len(rows)) == 1:
        return np.zeros((1, 2))
    rows = PCA(min(50, *rows.shape), random_state=0).fit_transform(rows)
    if count >= 5 and rows[:, 0].std() > 1e-6:  # t-SNE crashes on equal points
        rows = TSNE(perplexity=min(30.0, (count - 1) / 3), init="pca", random_state=0).fit_transform(rows)
    places = np.zeros((count, 2))
    widest = np.argsort(-np.ptp(rows, axis=0), kind="stable")[:2]  # a page is wide
    places[:, : len(widest)] = rows[:, widest]
    places -= places.min(0)
    return places / max(float(places.max()), 1e-12)


def map_page(title: str, note: str, places: np.ndarray, points: Sequence[Point]) -> str:
    """The page. title, note: plain text. places: (n, 2) of `layout`, one for each point."""
    styles = _styles([point.label for point in points])
    xy = 30 + places * (_SIDE - 60)
    height = float(xy[:, 1].max()) + 30
    marks = "\n".join(
        f'<path d="{_SHAPES[shape]}" fill="{color}" transform="translate({x:.1f},{y:.1f})"/>'
        for (x, y), (color, shape) in zip(xy, (styles.get(p.label, (_OTHER, 0)) for p in points), strict=True)
    )
    legend = "".join(
        f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true"><path d="{_SHAPES[shape]}" fill="{color}"/></svg>'
        f"{html.escape(label)}</li>"
        for label, (color, shape) in styles.items()
    )
    if any(point.label not in styles for point in points) and styles:
        legend += "<li>gray: other</li>"
    data = json.dumps([point._asdict() for point in points]).replace("</", "<\\/")
    body = f"""<p class="muted">{html.escape(note)}</p>
<div class="map">
<div class="plot">
<div id="map" role="application" tabindex="0" aria-describedby="how"
 aria-label="Map of {len(points)} sounds">
<svg viewBox="0 0 {_SIDE:.0f} {height:.0f}" aria-hidden="true">
{marks}
</svg>
</div>
</div>
<aside aria-label="Chosen sound">
<p id="how" class="screen">Click the map once; then the sound under the pointer plays. On the keyboard: arrow keys go
from sound to sound, Enter plays, Escape stops.</p>
<p class="screen"><label>Find by name or label <input type="search" id="find"></label></p>
<p><strong id="label"></strong> <span id="name"></span></p>
<p id="said" class="hidden" role="status"></p>
<p><img id="mel" alt="" hidden></p>
<p><audio id="audio" controls preload="none" aria-label="The chosen sound"></audio></p>
<ul class="legend">{legend}</ul>
</aside>
</div>
<script type="application/json" id="points">{data}</script>"""
    return document(title, body, Path(__file__).with_name("map.js").read_text(encoding="utf-8"))


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Color and shape of the most frequent labels."""
    frequent = [label for label, _ in Counter(label for label in labels if label).most_common()]
    return {
        label: (COLORS[number % len(COLORS)], number // len(COLORS))
        for number, label in enumerate(sorted(frequent[: len(COLORS) * len(_SHAPES)]))
    }
