"""Nearest neighbours through the command line: exact, a row a sound, with players; mistakes in one sentence."""

import base64
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from sklearn.neighbors import NearestNeighbors

from benchmarks.parity import randomize
from src import embed, search
from src.encoders.save import save_encoder
from src.evaluation.embedding_file import EmbeddingFile, rows
from src.evaluation.embedding_index import neighbours, sample_rows
from src.models import create_mae
from src.pages import sounds
from src.pages.map import layout

ODD = "<b> & 'odd' \"name\" :dog: [red] #1.wav"


@pytest.fixture(scope="module")
def place(tmp_path_factory, clips):
    """30 sounds, one with an odd name, and their indexes of clips, tokens and one as npz."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "sounds").mkdir()
    for number, clip in enumerate(clips[:30]):
        name = ODD if number == 7 else f"{number:02}.wav"
        soundfile.write(folder / "sounds" / name, clip.numpy(), 16000, subtype="FLOAT")
    save_encoder(randomize(create_mae("tiny"), 0).encoder, folder / "encoder")
    save_encoder(randomize(create_mae("tiny"), 1).encoder, folder / "other")
    for name, level in (("clips.parquet", "clip"), ("tokens.parquet", "frame"), ("clips.npz", "clip")):
        arguments = [str(folder / "sounds"), "--encoder", str(folder / "encoder"), "--level", level]
        assert embed.main([*arguments, "--out", str(folder / name)]) == 0
    write_broken(folder)
    return folder


def write_broken(folder):
    """Variants of the index of clips: what somebody else's parquet, a cut or a changed file look like."""
    table = pq.read_table(folder / "clips.parquet")
    settings = table.schema.metadata[b"embedding"]
    other_width = pa.FixedSizeListArray.from_arrays(np.zeros(len(table) * 7, np.float32), 7)
    lists = table["embedding"].cast(pa.list_(pa.float32()))
    place = table.schema.get_field_index("embedding")
    variants = {
        "foreign": (table, None),
        "not_json": (table, b"{"),
        "not_settings": (table, b"[1]"),
        "no_encoder": (table, b'{"level": "clip"}'),
        "no_embedding": (table.drop_columns(["embedding"]), settings),
        "lists": (table.set_column(place, "embedding", lists), settings),
        "narrow": (table.set_column(place, "embedding", other_width), settings),
        "empty": (table.slice(0, 0), settings),
    }
    for name, (rest, said) in variants.items():
        pq.write_table(rest.replace_schema_metadata(said and {b"embedding": said}), folder / f"{name}.parquet")
    content = (folder / "clips.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[:300])
    (folder / "damaged.parquet").write_bytes(content[:4] + b"\xff" * 600 + content[604:])


def test_the_same_as_scikit_learn(place, capsys):
    table = pq.read_table(place / "clips.parquet").to_pydict()
    vectors = np.array(table["embedding"])
    nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors)
    distance, index = nearest.kneighbors(vectors[3:4])
    found = neighbours(vectors[3].astype(np.float32), place / "clips.parquet", 5)
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
    found = neighbours(query, tmp_path / "o.parquet", 20)
    assert [each.path for each in found] == sorted(best, key=lambda p: -best[p])[:20]
    assert all(each.time == pytest.approx(times[np.argmax(similarity)], abs=1e-3) for each in found[:1])


def test_an_index_of_one_row_group_is_not_loaded_whole(tmp_path):
    num_rows, width = 200_000, 64  # 51 MB, a block of rows is 2 MB
    vectors = np.random.default_rng(0).normal(size=(num_rows, width)).astype(np.float32)
    table = rows([f"{i}.wav" for i in range(num_rows)], [1.0] * num_rows, [None] * num_rows, vectors)
    pq.write_table(table, tmp_path / "o.parquet", row_group_size=num_rows, compression="none", use_dictionary=False)
    code = (
        "import sys, numpy, pathlib, pyarrow; from src.evaluation.embedding_index import neighbours;"
        "print(neighbours(numpy.ones(64, 'f4'), pathlib.Path(sys.argv[1]), 3)[0].path);"
        "print(pyarrow.default_memory_pool().max_memory())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "o.parquet")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    best, peak = said.split()
    assert best == f"{np.argmax(vectors.sum(1) / np.linalg.norm(vectors, axis=1))}.wav"
    assert int(peak) < vectors.nbytes / 2


def test_an_index_that_does_not_tell_its_weights(place, capsys):
    """Another encoder may be given then; only the width has to be the same."""
    table = pq.read_table(place / "clips.parquet")
    settings = json.loads(table.schema.metadata[b"embedding"])
    del settings["weights"]
    pq.write_table(table.replace_schema_metadata({b"embedding": json.dumps(settings)}), place / "untold.parquet")
    query = str(place / "sounds" / ODD)
    for encoder in ("encoder", "other"):
        arguments = [query, "--index", str(place / "untold.parquet"), "--encoder", str(place / encoder)]
        assert search.main(arguments) == 0
        shown, notes = capsys.readouterr()
        assert "does not tell the weights" in notes
        assert encoder == "other" or f"1.000       {query}" in shown  # as it is written, `:dog:` and `[red]` too


def test_the_encoder_of_an_index_is_found_from_another_folder(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert embed.main(["sounds/01.wav", "--encoder", "encoder", "--out", str(tmp_path / "o.parquet")]) == 0
    monkeypatch.chdir(tmp_path)
    query = [str(place / "sounds/01.wav"), "--index", "o.parquet"]
    assert search.main(query) == 0 and "01.wav" in capsys.readouterr().out
    table = pq.read_table("o.parquet")
    settings = {**json.loads(table.schema.metadata[b"embedding"]), "encoder": "runs/gone"}
    pq.write_table(table.replace_schema_metadata({b"embedding": json.dumps(settings)}), "o.parquet")
    assert search.main(query) == 2
    message = capsys.readouterr().err
    assert "there is no checkpoint runs/gone" in message and "set --encoder" in message and message.count("\n") == 1


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sounds: list[np.ndarray] = []
        self.links: list[str] = []
        self.words = ""
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        url = dict(attributes).get("src", "")
        kind, _, content = url.partition(";base64,")
        if not content:
            self.links += [url] if url else []
        elif tag == "audio":
            assert kind == "data:audio/flac" and dict(attributes)["preload"] == "none"
            self.sounds.append(soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")[0])
        else:
            assert dict(attributes)["loading"] == "lazy" and dict(attributes)["alt"].startswith("log-mel of ")
            assert base64.b64decode(content).startswith(b"\x89PNG")

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize("index", ["clips.parquet", "tokens.parquet"])
def test_the_page_plays_each_sound_and_shows_it(place, clips, index):
    query, target = place / "sounds" / ODD, place / "pages" / f"{index}.html"
    assert search.main([str(query), "--index", str(place / index), "--top", "4", "--html", str(target)]) == 0
    page = Page(target.read_text(encoding="utf-8"))
    assert len(page.sounds) == 5 == page.tags.count("img") and "b" not in page.tags and ODD in page.words
    for sound in page.sounds[:2]:  # the query, and itself as its nearest neighbor from shortly before the best token
        end = clips[7].numpy()[-len(sound) :]
        np.testing.assert_allclose(sound, np.clip(end, -1, 1), atol=2 / 32768)
    assert len(page.sounds[0]) == len(clips[7]) and not page.links and not target.with_suffix(".files").exists()


def test_a_page_of_many_sounds_has_them_in_files_beside_it(place, monkeypatch, capsys):
    monkeypatch.setattr(sounds, "MOST_EMBEDDED_BYTES", 1e5)
    target = place / "many.html"
    command = [str(place / "sounds" / "03.wav"), "--index", str(place / "clips.parquet"), "--html", str(target)]
    for top in (20, 6):  # a second page of that name replaces the first with its files
        assert search.main([*command, "--top", str(top)]) == 0
        page, files = Page(target.read_text(encoding="utf-8")), sorted((place / "many.files").iterdir())
        assert len(page.links) == 2 * (top + 1) == len(files) and not page.sounds
        assert {target.parent / unquote(link) for link in page.links} == set(files)
    assert stat.S_IMODE(files[0].stat().st_mode) == stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask()
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o777 & ~umask()
    (place / "many.files" / "thesis.txt").write_text("mine")
    capsys.readouterr()
    assert search.main(command) == 2 and "holds other files (thesis.txt)" in capsys.readouterr().err
    assert (place / "many.files" / "thesis.txt").exists() and len(files) + 1 == len(list(files[0].parent.iterdir()))


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_players_wherever_the_audio_lies(place, tmp_path, demo_table, monkeypatch, capsys):
    """Rows of a dataset and of a parquet, members of shards, paths relative to where the index was made."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    pq.write_table(demo_table.slice(0, 4), "data/test-00000.parquet")
    pq.write_table(demo_table.slice(4, 4), "rows.parquet")
    with tarfile.open("shard.tar", "w") as tar:
        tar.add(place / "sounds" / "01.wav", "a#1/01.wav")
        tar.add(place / "sounds" / ODD, ODD)
    (tmp_path / "here").mkdir()
    shutil.copy(place / "sounds" / "02.wav", "here/02.wav")
    inputs = [".", "rows.parquet", "shard.tar", "here"]
    options = ["--split", "test", "--encoder", str(place / "encoder"), "--out", "all.parquet"]
    assert embed.main(["data", *inputs[1:], *options]) == 0
    monkeypatch.chdir(place)
    index = str(tmp_path / "all.parquet")
    capsys.readouterr()
    assert search.main(["data:test#2", "--index", index, "--top", "99", "--html", str(tmp_path / "o.html")]) == 0
    said, notes = capsys.readouterr()
    page = Page((tmp_path / "o.html").read_text(encoding="utf-8"))
    assert len(page.sounds) == 1 + 4 + 4 + 2 + 1 and "no player" not in notes
    assert said.splitlines()[1].split()[1:3] == ["1.000", "data:test#2:validation_0002.opus"]
    (tmp_path / "here/02.wav").unlink()
    assert search.main(["data:test#2", "--index", index, "--top", "99", "--html", str(tmp_path / "o.html")]) == 0
    assert "1 of 12 sounds have no player: there is no file here/02.wav" in capsys.readouterr().err
    assert len(Page((tmp_path / "o.html").read_text(encoding="utf-8")).sounds) == 11


def test_a_map_has_a_point_and_a_sound_for_each_clip(place):
    target = place / "map.html"
    assert search.main(["--index", str(place / "clips.parquet"), "--map", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    points = json.loads(re.search(r'id="points">(.*?)</script>', text, re.S)[1])
    assert len(points) == 30 == len(re.findall(r"transform=\"translate", text))
    assert {Path(point["name"]).name for point in points} >= {ODD, "03.wav"}
    assert all(point["audio"].startswith("data:audio/flac") and not point["problem"] for point in points)


def test_near_embeddings_are_near_on_the_map():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 20)
    places = layout((random.normal(size=(3, 32))[groups] + 0.1 * random.normal(size=(60, 32))).astype(np.float32))
    assert places.shape == (60, 2) and places.min() >= 0 and places.max() == 1
    nearest = NearestNeighbors(n_neighbors=2).fit(places).kneighbors(places, return_distance=False)[:, 1]
    assert (groups[nearest] == groups).all()
    for few in (1, 2, 5):
        assert np.isfinite(layout(random.normal(size=(few, 8)))).all()
    assert np.isfinite(layout(np.ones((7, 8)))).all()


def test_a_map_of_a_large_index_is_an_even_sample(place):
    paths, labels, vectors, total = sample_rows(place / "clips.parquet", 4)
    table = pq.read_table(place / "clips.parquet").to_pydict()
    assert total == 30 and paths == [table["path"][i] for i in (0, 10, 19, 29)] and labels == [""] * 4
    np.testing.assert_array_equal(vectors[1], np.array(table["embedding"][10], np.float32))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--index", "no.parquet"], "there is no index"),
        (["--index", "{place}/clips.npz"], "the search reads parquet"),
        (["--index", "{place}/encoder/config.json"], "is not a table of embeddings"),
        (["--index", "{place}/foreign.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/not_json.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/not_settings.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/no_encoder.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/no_embedding.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/lists.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/cut.parquet"], "is not a table of embeddings"),
        (["--index", "{place}/damaged.parquet"], "is damaged"),
        (["--index", "{place}/narrow.parquet"], "has 7 values per row"),
        (["--index", "{place}/empty.parquet"], "has no rows"),
        (["--html", "{place}/sounds"], "cannot be written"),
        (["--top", "0"], "--top 0 is out of range"),
        (["--encoder", "{place}/other"], "was made with other weights"),
        (["--encoder", "{place}/none.pt"], "there is no checkpoint"),
        (["{place}/encoder/config.json"], "not readable as audio"),
        (["{place}/none.wav"], "there is no file"),
        (["{place}/sounds"], "a folder, not a file"),
        (["{place}/gone.parquet#3"], "there is no dataset"),
        (["{place}/clips.parquet#3"], "audio_column=audio is not a column"),
        (["--map", "{place}/o.html", "--index", "{place}/tokens.parquet"], "needs an index of clips"),
    ],
)
def test_mistakes_end_in_one_sentence(place, capsys, arguments, words):
    arguments = [argument.format(place=place) for argument in arguments]
    query = [] if arguments[0].startswith("/") else [str(place / "sounds/01.wav")]
    assert search.main([*query, "--index", str(place / "clips.parquet"), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.strip().count("\n") == 0, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "or --map FILE"),
        (["--map", "."], "--map . cannot be written"),
        (["--html", "o.html"], "neighbors of a query"),
    ],
)
def test_without_a_query(place, capsys, arguments, words):
    assert search.main(["--index", str(place / "clips.parquet"), *arguments]) == 2
    assert words in capsys.readouterr().err
