"""Nearest neighbours through the command line: exact, a row a sound, with players; mistakes in one sentence."""

from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from sklearn.neighbors import NearestNeighbors

from benchmarks.parity import randomise
from src import embed, search
from src.checkpoint import save_encoder
from src.evaluation.embedding_file import EmbeddingFile, rows
from src.models import create_mae

ODD = "<b> & 'odd' \"name\" #1.wav"


@pytest.fixture(scope="module")
def place(tmp_path_factory, clips):
    """30 sounds, one with an odd name, and their indexes of clips, tokens and one as npz."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "sounds").mkdir()
    for number, clip in enumerate(clips[:30]):
        name = ODD if number == 7 else f"{number:02}.wav"
        soundfile.write(folder / "sounds" / name, clip.numpy(), 16000, subtype="FLOAT")
    save_encoder(randomise(create_mae("tiny"), 0).encoder, folder / "encoder")
    save_encoder(randomise(create_mae("tiny"), 1).encoder, folder / "other")
    for name, level in (("clips.parquet", "clip"), ("tokens.parquet", "frame"), ("clips.npz", "clip")):
        arguments = [str(folder / "sounds"), "--encoder", str(folder / "encoder"), "--level", level]
        assert embed.main([*arguments, "--out", str(folder / name)]) == 0
    return folder


def test_the_same_as_scikit_learn(place, capsys):
    table = pq.read_table(place / "clips.parquet").to_pydict()
    vectors = np.array(table["embedding"])
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    distance, index = nearest.kneighbors(vectors[3:4])
    found = search.neighbours(vectors[3].astype(np.float32), place / "clips.parquet", 5)
    assert [each.path for each in found] == [table["path"][i] for i in index[0]]
    np.testing.assert_allclose([each.similarity for each in found], 1 - distance[0], atol=1e-5)
    query = table["path"][3]
    assert search.main([query, "--index", str(place / "clips.parquet"), "--top", "3"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(lines) == 3 and lines[0] == ["1", "1.000", query] and lines[1][2] == found[1].path


def test_many_blocks_and_few_distinct_sounds(tmp_path):
    """Over several blocks of rows, each sound counts once, with its best token."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(30_000, 8)).astype(np.float32)
    paths = [f"{i % 50}.wav" for i in range(len(vectors))]
    file = EmbeddingFile(tmp_path / "o.parquet", {"level": "frame"})
    times = np.arange(len(vectors)) * 0.04
    for part in np.array_split(np.arange(len(vectors)), 7):
        chosen = [paths[i] for i in part]
        file.write_part([rows(chosen, [1.0] * len(part), [None] * len(part), vectors[part], times[part])])
    assert file.finish() == 30_000
    query = random.normal(size=8).astype(np.float32)
    similarity = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    best = {p: max(similarity[k::50]) for k, p in enumerate(paths[:50])}
    found = search.neighbours(query, tmp_path / "o.parquet", 20)
    assert [each.path for each in found] == sorted(best, key=lambda p: -best[p])[:20]
    assert all(each.time == pytest.approx(times[np.argmax(similarity)], abs=1e-3) for each in found[:1])


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.players: list[str] = []
        self.words = ""
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "audio":
            self.players.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("index", ["clips.parquet", "tokens.parquet"])
def test_the_page_has_a_player_for_each_sound(place, index):
    query, target = place / "sounds" / ODD, place / "pages" / f"{index}.html"
    target.parent.mkdir(exist_ok=True)
    assert search.main([str(query), "--index", str(place / index), "--top", "4", "--html", str(target)]) == 0
    page = Page(target.read_text(encoding="utf-8"))
    assert len(page.players) == 5 and "b" not in page.tags and ODD in page.words
    for player in page.players:
        file, start = urldefrag(player)
        assert (target.parent / unquote(file)).is_file()
        assert start.startswith("t=") or index == "clips.parquet" or player == page.players[0]


def test_a_clip_inside_a_shard_has_no_player(place, tmp_path):
    found = [search.Neighbour(0.5, "shards/000.tar/a.wav", None, None)]
    assert "inside a dataset or shard" in Page(search.page("q.wav", found, tmp_path / "o.html")).words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--index", "no.parquet"], "there is no index"),
        (["--index", "{place}/clips.npz"], "the search reads parquet"),
        (["--index", "{place}/encoder/config.json"], "is not a table of embeddings"),
        (["--top", "0"], "--top 0 is out of range"),
        (["--encoder", "{place}/other"], "was made by other weights"),
        (["--encoder", "{place}/none.pt"], "there is no checkpoint"),
        (["{place}/encoder/config.json"], "not readable as audio"),
        (["{place}/none.wav"], "none.wav: not readable"),
    ],
)
def test_mistakes_end_in_one_sentence(place, capsys, arguments, words):
    arguments = [argument.format(place=place) for argument in arguments]
    query = [] if arguments[0].startswith("/") else [str(place / "sounds/01.wav")]
    assert search.main([*query, "--index", str(place / "clips.parquet"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.strip().count("\n") == 0, said
