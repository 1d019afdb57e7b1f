"""Caches in temporary folders: an empty one for each test of the data side."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("data", derandomize=True, database=None, deadline=None)  # nothing is left in the repository
settings.load_profile("data")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AUDIO_ENCODER_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def hub_cache(tmp_path_factory):
    """Where `datasets` puts what it converts."""
    datasets = pytest.importorskip("datasets")
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before
