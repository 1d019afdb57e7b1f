"""Real clips and small networks in which every parameter matters."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torch import Tensor, nn

from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder
from src.models.vit import AudioViT

DEMO = Path(__file__).parents[2] / "data" / "demo" / "data"


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


@pytest.fixture
def small_encoder() -> AudioViT:
    return disturb(_small_encoder()).eval()


@pytest.fixture
def small_mae() -> MaskedAutoencoder:
    decoder = Decoder(48, 32, 2, 4)
    initialize(decoder, 0, "decoder")
    return disturb(MaskedAutoencoder(_small_encoder(), decoder)).eval()


def _small_encoder() -> AudioViT:
    encoder = AudioViT(48, 3, 4)
    initialize(encoder, 0, "encoder")
    return encoder


@torch.no_grad()
def disturb(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move what starts at 0 or 1 away from it, so that nothing can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(-30 + 5 * torch.randn(64, generator=generator))
            module.running_var.copy_(200 + 50 * torch.rand(64, generator=generator))
    return network
