"""The five model sizes and the functions that create networks from them."""

from typing import Any, NamedTuple

import torch

from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.log_mel import LogMel
from src.models.mae import MaskedAutoencoder
from src.models.vit import AudioViT


class Shape(NamedTuple):
    width: int
    depth: int
    num_heads: int


class Size(NamedTuple):
    encoder: Shape
    decoder: Shape


# base, 0.6b and 1.2b are from the paper (table 1); tiny and small are DeiT's.
SIZES = {
    "tiny": Size(Shape(192, 12, 3), Shape(192, 4, 3)),
    "small": Size(Shape(384, 12, 6), Shape(256, 4, 4)),
    "base": Size(Shape(768, 12, 12), Shape(512, 8, 16)),
    "0.6b": Size(Shape(1280, 32, 16), Shape(512, 8, 16)),
    "1.2b": Size(Shape(1536, 40, 24), Shape(768, 8, 24)),
}


def build_encoder(
    architecture: dict[str, Any], drop_path: float = 0.0, gradient_checkpointing: bool = False
) -> AudioViT:
    """Build an encoder on the meta device (no memory, no weights) from an `AudioViT.architecture`."""
    with torch.device("meta"):
        log_mel = LogMel(**architecture["log_mel"])
        rest = {name: value for name, value in architecture.items() if name != "log_mel"}
        return AudioViT(**rest, drop_path=drop_path, gradient_checkpointing=gradient_checkpointing, log_mel=log_mel)


def build_mae(architecture: dict[str, Any]) -> MaskedAutoencoder:
    """A network on the CPU, with initial weights, from what `MaskedAutoencoder.architecture` said."""
    encoder = _materialize(build_encoder(architecture["encoder"]), 0, "encoder", "cpu")
    with torch.device("meta"):
        decoder = Decoder(**architecture["decoder"])
    decoder = _materialize(decoder, 0, "decoder", "cpu")
    return MaskedAutoencoder(encoder, decoder, architecture["mask_ratio"], architecture["mask_group"])


def create_encoder(
    size: str,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    dct_patches: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> AudioViT:
    """Create an encoder whose initial weights depend only on `seed` and the parameter names.

    Args:
        size: a key of SIZES.
        drop_path, layer_scale, dct_patches, gradient_checkpointing: as in `AudioViT`.
        device: "meta" gives shapes without memory or weights.
    """
    with torch.device("meta"):
        encoder = AudioViT(
            *SIZES[size].encoder, drop_path, layer_scale, gradient_checkpointing, dct_patches=dct_patches
        )
    return _materialize(encoder, seed, "encoder", device)


def create_mae(
    size: str,
    mask_ratio: float = 0.75,
    mask_group: int = 2,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
    dct_patches: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> MaskedAutoencoder:
    """Create a masked autoencoder; its encoder equals that of `create_encoder` with the same arguments."""
    encoder = create_encoder(size, drop_path, layer_scale, dct_patches, gradient_checkpointing, seed, device)
    with torch.device("meta"):
        decoder = Decoder(encoder.embed_dim, *SIZES[size].decoder, max_tokens=encoder.max_tokens)
    return MaskedAutoencoder(encoder, _materialize(decoder, seed, "decoder", device), mask_ratio, mask_group)


def _materialize(module, seed: int, part: str, device: str):
    if device != "meta":
        module.to_empty(device=device)
        initialize(module, seed, part)
    return module
