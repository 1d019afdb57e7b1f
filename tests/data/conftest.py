"""Caches in temporary folders, and the audio the tests read: the demo's clips and the collections of odd files."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import settings

from tests.training.sources import DEMO, write_sources

settings.register_profile("data", derandomize=True, database=None, deadline=None)  # nothing is left in the repository
settings.load_profile("data")

SHARED = Path(__file__).parents[3] / "shared" / "audio"


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


@pytest.fixture(scope="session")
def bad_files() -> Path:
    return _shared("bad")


@pytest.fixture(scope="session")
def same_files() -> Path:
    return _shared("same")


@pytest.fixture(scope="session")
def demo_table():
    """The demo's validation split: 115 clips of 0.17 to 2.5 s, Opus, in the layout of Hugging Face."""
    files = sorted((DEMO / "data").glob("validation-*.parquet"))
    if not files:
        pytest.skip("data/demo is absent")
    return pq.read_table(files[0])


@pytest.fixture(scope="session")
def encoded(demo_table) -> list[bytes]:
    return [row["bytes"] for row in demo_table.column("audio").to_pylist()]


@pytest.fixture(scope="session")
def sources(demo_table, tmp_path_factory) -> dict[str, str]:
    """The validation split as each kind of source, in YAML."""
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def write_wav():
    def write(file: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1, peak: float = 0.5, seed: int = 0):
        """Noise in float32; returns (T,) or (T, channels)."""
        file.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(seed)
        shape = (round(seconds * rate),) if channels == 1 else (round(seconds * rate), channels)
        samples = random.uniform(-1, 1, shape)
        samples = (samples * peak / np.abs(samples).max()).astype(np.float32)
        data = io.BytesIO()
        soundfile.write(data, samples, rate, "FLOAT", format="WAV")
        file.write_bytes(data.getvalue())
        return samples

    return write


def _shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent")
    return SHARED / name
