"""Real clips from data/demo, one thread, a cache folder for the tests alone, a network of two blocks."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torch import Tensor

from src.models.sizes import SIZES
from tests.training.sources import write_sources
from tests.training.two_blocks import TWO_BLOCKS

DEMO = Path(__file__).parents[1] / "data" / "demo" / "data"
SHARED = Path(__file__).parents[2] / "shared" / "audio"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For networks as small as these a second thread costs more than it gives, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests leave the user's cache alone, and workers of pytest-xdist have one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIO_ENCODER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def two_blocks():
    """The size tiny has two blocks and a decoder of one; `python -m tests.training.two_blocks` trains the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", TWO_BLOCKS)
        yield


@pytest.fixture(scope="session")
def clips() -> list[Tensor]:
    """48 recordings of 0.1 to 2.5 s at 16 kHz."""
    files = sorted(DEMO.glob("test-*.parquet"))
    if not files:
        pytest.skip("data/demo is absent")
    encoded = pq.read_table(files[0], columns=["audio"])["audio"].to_pylist()
    recordings = []
    for clip in encoded[:: len(encoded) // 48][:48]:
        samples, sample_rate = soundfile.read(io.BytesIO(clip["bytes"]), dtype="float32")
        assert sample_rate == 16000 and samples.ndim == 1
        recordings.append(torch.from_numpy(samples))
    return recordings


@pytest.fixture(scope="session")
def long_audio(clips) -> Tensor:
    """(T,), 31 s and more: the clips one after another, as often as it takes."""
    joined = torch.cat(clips)
    return joined.repeat(int(np.ceil(31.5 * 16000 / len(joined))))


@pytest.fixture(scope="session")
def bad_files() -> Path:
    return _shared("bad")


@pytest.fixture(scope="session")
def same_files() -> Path:
    return _shared("same")


@pytest.fixture(scope="session")
def demo_table():
    """The demo's validation split: 115 clips of 0.17 to 2.5 s, Opus, in the layout of Hugging Face."""
    files = sorted(DEMO.glob("validation-*.parquet"))
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
