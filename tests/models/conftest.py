"""Small networks in which every parameter affects the output."""

import pytest
import torch
from torch import nn

from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder
from src.models.vit import AudioViT


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
    """Perturb all parameters and statistics, so that leaving out one initialized to 0 or 1 changes the result."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.copy_(-30 + 5 * torch.randn(64, generator=generator))
            module.running_var.copy_(200 + 50 * torch.rand(64, generator=generator))
    return network
