"""Real clips from data/demo, and one thread: for networks this small a second one costs more than it gives."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torch import Tensor

DEMO = Path(__file__).parents[1] / "data" / "demo" / "data"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For networks as small as these a second thread costs more than it gives, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
