"""The notebooks run, and hold what they showed when they were run last."""

import json
from pathlib import Path

import pytest

BOOKS = sorted(Path("notebooks").glob("*.ipynb"))
NAMES = ["01_look", "02_embed_and_search", "03_classify_your_own", "04_pretrain", "05_evaluate", "06_inspect_a_run"]
SLOW = set(NAMES[2:])


def code(book: Path) -> list[dict]:
    return [each for each in json.loads(book.read_text(encoding="utf-8"))["cells"] if each["cell_type"] == "code"]


def test_there_are_six_and_they_are_small():
    assert [each.stem for each in BOOKS] == NAMES
    assert sum(each.stat().st_size for each in BOOKS) < 1.5e6


@pytest.mark.parametrize("book", BOOKS, ids=lambda each: each.stem)
def test_outputs_are_those_of_one_run_from_top_to_bottom(book):
    cells = code(book)
    assert [each["execution_count"] for each in cells] == list(range(1, len(cells) + 1))
    assert cells[0]["source"] == code(BOOKS[0])[0]["source"]
    outputs = [output for each in cells for output in each["outputs"]]
    assert len(outputs) >= 3
    assert not [each for each in outputs if each["output_type"] == "error" or each.get("name") == "stderr"]
    assert not [word for word in ("/root/", "/home/", "/tmp/") if word in json.dumps(outputs)]
    assert all(len([line for line in each["source"] if line.strip()]) <= 10 for each in cells)


@pytest.mark.parametrize(
    "book",
    [pytest.param(each, id=each.stem, marks=[pytest.mark.slow] * (each.stem in SLOW)) for each in BOOKS],
)
def test_it_runs_without_a_quickstart(book, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for cell in code(book):
        source = "".join(cell["source"]).replace("runs/quickstart", f"{tmp_path}/none")
        exec(source.replace("runs/notebooks", str(tmp_path)), names)
    number = int(book.stem[:2])
    if number == 1:
        assert names["embeddings"].shape == (26, 384) and (tmp_path / "look.png").stat().st_size > 10_000
    if number == 2:
        assert len(names["table"]) == 212 and names["found"][0].path.endswith("#40:test_0040.opus")
        assert (tmp_path / "map.html").exists()
    if number == 3:
        assert names["report"]["clips"] >= 20 and (names["run"] / "report.html").exists()
        assert names["scores"]["accuracy"] > names["scores"]["floor majority"]
    if number == 4:
        assert len(names["losses"].values) == 30 and names["losses"].values[-1] < names["losses"].values[0]
    if number == 5:
        assert {"knn", "linear"} <= set(names["rows"].method) and "random-patches" in set(names["rows"].encoder)
        assert "minus random-patches" in names["text"]
    if number == 6:
        assert names["metrics"]["train/loss"].notna().sum() == 30 and len(names["pictures"]) == 3
