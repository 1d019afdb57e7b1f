"""Odd sound is said once, with count and names, in every door that decodes."""

import warnings

import datasets
import numpy as np
import pytest
import soundfile
import torch

from src.classification.predict import _segments
from src.config.settings import DataConfig, SourceConfig
from src.data.labelled.clips import read_labelled
from src.data.labelled.probe_clips import load_probe_clips
from src.data.odd_sound import warn_of_some
from src.data.pretraining.datamodule import PretrainDataModule
from src.data.sources.folder import FolderSource
from src.embed import embed
from src.evaluation import collection
from src.evaluation.collection import Settings, embed_collection
from src.evaluation.embedding_file import EmbeddingFile
from src.models.initialize import initialize
from src.models.vit import AudioViT

CANCEL = "1 clip with channels that cancel each other, used as is: "
SECONDS = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of four clips; of one clip the channels cancel."""
    place = tmp_path_factory.mktemp("odd")
    for label, name in enumerate(("cat", "dog")):
        (place / name).mkdir()
        for i in range(4):
            samples = np.random.default_rng([label, i]).uniform(-0.5, 0.5, int(SECONDS * 16000))
            soundfile.write(place / name / f"{i}.wav", samples, 16000)
    samples = np.random.default_rng(9).uniform(-0.5, 0.5, int(SECONDS * 16000))
    soundfile.write(place / "dog/3.wav", np.stack([samples, -samples], 1), 16000)
    return place


@pytest.fixture(scope="module")
def encoder() -> AudioViT:
    network = AudioViT(48, 1, 3)
    initialize(network, 0, "encoder")
    return network.eval()


def said(door) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notes = door() or []
    return [text for text in [*notes, *(str(each.message) for each in caught)] if "used as is" in text]


def pretraining(source: SourceConfig, gigabytes: float) -> None:
    PretrainDataModule(
        DataConfig(sources=[source], batch_size=4, cache_gigabytes=gigabytes, num_workers=0), seed=0
    ).setup()


@pytest.mark.parametrize("gigabytes", [4.0, 0.0])
def test_pretraining_and_classifiers(folder, gigabytes):
    source = SourceConfig(path=str(folder))
    among = "" if gigabytes else "of 8 clips looked at before training: "
    assert said(lambda: pretraining(source, gigabytes)) == [f"{among}{CANCEL}{folder}/dog/3.wav"]
    classifier = said(lambda: read_labelled([source], None, None, cache_gigabytes=gigabytes).notes)
    assert classifier == [f"{CANCEL}{folder}/dog/3.wav"]


def test_of_no_clips_nothing_is_said():
    assert said(lambda: warn_of_some([])) == []


def test_a_stream(folder, tmp_path):
    files = sorted(folder.rglob("*.wav"))
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files] + [{"bytes": b"broken", "path": "x.wav"}]
    datasets.Dataset.from_dict({"audio": rows}).to_parquet(tmp_path / "set.parquet")
    source = SourceConfig("huggingface", str(tmp_path / "set.parquet"), streaming=True)
    assert said(lambda: pretraining(source, 4.0)) == [
        f"of 9 clips looked at before training: {CANCEL}{tmp_path}/set.parquet#7"
    ]


def test_probes(folder):
    source = SourceConfig(path=str(folder))
    assert said(lambda: load_probe_clips(source, source, 100) and None) == 2 * [f"{CANCEL}{folder}/dog/3.wav"]


@pytest.mark.parametrize("long_seconds", [60.0, 1.0])
def test_embeddings(folder, encoder, tmp_path, monkeypatch, long_seconds):
    monkeypatch.setattr(collection, "LONG_SECONDS", long_seconds)
    file = EmbeddingFile(tmp_path / "a.parquet", {}, {})
    sources = [FolderSource(str(folder))]
    texts = said(lambda: embed_collection(encoder, sources, file, Settings(), 1, lambda *_: None))
    assert texts == [f"{CANCEL}{folder}/dog/3.wav"]
    file.close()


def test_one_file_or_array(folder, encoder):
    assert said(lambda: embed(folder / "dog/3.wav", encoder) is None) == [f"{CANCEL}{folder}/dog/3.wav"]
    assert not said(lambda: embed(folder / "dog/2.wav", encoder) is None)
    text = "1 clip with digital silence, used as is: the array"
    assert said(lambda: embed(torch.zeros(16000), encoder, 16000) is None) == [text]


def test_predictions(folder, monkeypatch):
    monkeypatch.setattr("src.classification.predict._SEGMENT_SECONDS", 0.5)
    odd: list[tuple[str, str]] = []
    assert len(list(_segments(FolderSource(str(folder)), 0.04, [], odd))) == 8 * 4
    assert odd == [(f"{folder}/dog/3.wav", "channels that cancel each other")]
