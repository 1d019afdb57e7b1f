"""Pages: one design, readable in light and dark, reachable by keyboard and screen reader, in need of no other file."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from src.evaluation.page import page
from src.evaluation.report import report
from src.evaluation.report_page import report_page
from src.evaluation.table import tables
from src.pages.document import COLORS, breakable, chart, document, table
from src.pages.map import Point, map_page
from src.pages.sounds import embedded_player

CSS = Path("src/pages/page.css").read_text(encoding="utf-8")
NAME = "<i>a</i>/very_long name-of a [file] & #1.wav"


@cache
def report_html() -> str:
    random = np.random.default_rng(0)
    names = [NAME, "$x$", *(f"class {i}" for i in range(8))]
    targets = np.eye(10)[np.arange(40) % 10]
    result = report([f"{NAME}{i}" for i in range(40)], targets, random.dirichlet(np.ones(10), 40), names, False)
    result |= {"notes": [NAME], "floors": {"majority": 0.1}}
    players = {
        each["path"]: embedded_player(random.normal(size=1600) * 0.1, each["path"]) for each in result["mistakes"]
    }
    return report_page("run", result, {"train/loss": [(0, 1.0), (10, 0.5)]}, players)


@cache
def evaluation_html() -> str:
    random = np.random.default_rng(0)
    common = {"what": "nearest neighbors", "method": "knn", "metric": "accuracy", "domain": "speech", "notes": [NAME]}
    common |= {"candidates": ["last"], "views": {"last": 1}, "path": "t", "seed": 0}
    rows = [
        {"task": task, "encoder": encoder, "score": 0.5, "interval": [0.4, 0.6], "floor": encoder == "mel",
         "samples": random.uniform(0.4, 0.6, 50).tolist(), **common}
        for task in ("esc50", NAME) for encoder in ("runs/quickstart", "mel")
    ]  # fmt: skip
    return page(tables(rows), rows, {"broken": f"{NAME}: no labels"})


def map_html() -> str:
    points = [Point(NAME, f"label {i % 26}", "a.flac", "a.png") for i in range(60)]
    return map_page(NAME, "60 sounds", np.random.default_rng(0).uniform(size=(60, 2)), points)


class Outline(HTMLParser):
    """What a screen reader meets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("make", [report_html, evaluation_html, map_html])
def test_a_page_is_accessible_and_whole(make):
    text = make()
    outline = Outline(text)
    assert text.startswith("<!doctype html>") and outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("title")) == len(outline.all("h1")) == len(outline.all("main")) == 1
    assert not outline.all("h3") and not outline.all("i") and "width=device-width" in text
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link[1:] in ids for link in re.findall(r'(?:xlink:)?href="(#[^"]+)"', text))
    regions = [a for _, a in outline.elements if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert len({a["aria-label"] for a in regions}) == len(regions)
    assert all("alt" in attributes for attributes in outline.all("img"))
    assert all(attributes["aria-label"] for attributes in outline.all("audio"))
    assert all(attributes.get("role") == "img" or "aria-hidden" in attributes or "viewbox" in attributes
               for attributes in outline.all("svg"))  # fmt: skip
    assert all(attributes.get("scope") == "col" for attributes in outline.all("th"))
    assert text.count('class="scroll"') == len(regions) == text.count("<table>") + text.count('class="chart"')
    assert not outline.all("link") and not re.findall(r'\bsrc="(?!data:|a\.)|url\((?!#)|@import', text)


def test_the_pages_share_one_design():
    assert {re.search(r"<style>\n(.*?)</style>", make(), re.S)[1] for make in (report_html, evaluation_html)} == {CSS}
    assert len(list(Path("src").rglob("*.css"))) == 1
    assert not [
        f for f in Path("src").rglob("*.py") if "<style" in f.read_text(encoding="utf-8") and f.stem != "document"
    ]


def luminance(color: str) -> float:
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    parts = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(parts @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(number):
    colors = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{(.*?)\}", CSS, re.S)[number]))
    for name in ("text", "muted", "accent"):
        assert contrast(colors[name], colors["page"]) >= 4.5 and contrast(colors[name], colors["panel"]) >= 4.5
    for color in COLORS:  # of graphics
        assert contrast(color, colors["page"]) >= 3 and contrast(color, colors["panel"]) >= 3
    full = [
        int(a * 0.75 + b * 0.25)
        for a, b in zip(bytes.fromhex("2f78d0"), bytes.fromhex(colors["page"][1:]), strict=True)
    ]
    assert contrast("#" + bytes(full).hex(), colors["text"]) >= 4.5  # numbers in the confusion matrix


def test_text_of_charts_follows_the_page():
    def build() -> Figure:
        figure = Figure()
        figure.subplots().set(title="title", xlabel="step")
        return figure

    text = chart("curve", build)
    assert "currentColor" in text and ">title</text>" in text and "#010203" not in text and "#ffffff" not in text


def test_names_are_text_and_break_behind_separators():
    assert breakable("a/b_c.wav") == "a/<wbr>b_<wbr>c.wav" and breakable("<b>&amp;") == "&lt;b&gt;&amp;amp;"
    text = table("t", ["<name>", "score"], [["a", "0.5"], ["b", ""]], emphasized=[1])
    assert "&lt;name&gt;" in text and '<td class="number">0.5</td>' in text and "<tr class=mean><td>b" in text
    assert "<script" not in document("<script>", "") and "overflow-wrap: anywhere" not in CSS
