"""Initial weights as a pure function of (seed, parameter name), on any device, whole or sharded.

Distributions follow the official code: Xavier uniform in the encoder, truncated normal (std 0.02) in the decoder.
"""

import hashlib
import math

import torch
import torchaudio.functional as AF
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from src.models.log_mel import LogMel
from src.models.vit import PatchEmbed


@torch.no_grad()
def initialize(module: nn.Module, seed: int, part: str) -> None:
    """Initialize all parameters and buffers of an encoder or decoder in place.

    Args:
        module: may hold uninitialized memory (`to_empty`).
        part: "encoder" or "decoder"; selects the distribution of the matrices and is the prefix of the names.
    """
    for name, parameter in module.named_parameters():
        fill(parameter, initial_value(f"{part}.{name}", parameter.shape, seed, _scale_of(module, name)))
    for child in module.modules():
        if isinstance(child, LogMel):
            child.reset_buffers()
        elif isinstance(child, nn.BatchNorm1d):
            child.reset_running_stats()
        elif isinstance(child, PatchEmbed) and child.dct:
            fill(child.proj.weight, cosine_transform(child.proj.weight.shape))
            child.proj.bias.zero_()  # type: ignore[union-attr]


def fill(parameter: Tensor, value: Tensor) -> None:
    """Copy the full tensor `value`, the same on each process, into `parameter`; a DTensor takes its local shard."""
    if isinstance(parameter, DTensor):
        local = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(local.to_local())
    else:
        parameter.copy_(value)


def initial_value(name: str, shape: torch.Size, seed: int, layer_scale: float = 1.0) -> Tensor:
    """Initial value of one parameter, fp32 on the CPU. `name` starts with "encoder." or "decoder."."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
    value = torch.empty(shape, device="cpu")
    if name.endswith(".gamma"):
        return value.fill_(layer_scale)
    if name.endswith(("time_pos_embed", "freq_pos_embed", "mask_token")):
        return value.normal_(std=0.02, generator=generator)
    if "patch_embed.proj" in name:  # PyTorch's default for a convolution with 256 inputs
        bound = 1 / math.sqrt(256 if len(shape) == 1 else value[0].numel())
        return value.uniform_(-bound, bound, generator=generator)
    if name.endswith("bias") or name.endswith("pos_embed"):
        return value.zero_()
    if len(shape) == 1:  # norms
        return value.fill_(1.0)
    if name.startswith("encoder."):
        return nn.init.xavier_uniform_(value, generator=generator)
    return nn.init.trunc_normal_(value, std=0.02, generator=generator)


def cosine_transform(shape: torch.Size) -> Tensor:
    """Weight (D, 1, n_mels, frames) of a patch projection that is a discrete cosine transform, as in MFCC.

    Row t * n_mels + b is cosine b over the bands times cosine t over the frames (DCT-II), with the norm of random rows.
    Rows beyond the n_mels * frames products are zero.
    """
    width, _, n_mels, frames = shape
    with torch.device("cpu"):
        over_bands, over_frames = (AF.create_dct(count, count, "ortho").T for count in (n_mels, frames))
        products = torch.einsum("bm,tf->tbmf", over_bands, over_frames).reshape(-1, 1, n_mels, frames)
        value = torch.zeros(shape)
    value[: len(products)] = products[:width] / math.sqrt(3)
    return value


def _scale_of(module: nn.Module, name: str) -> float:
    owner = module.get_submodule(name.rpartition(".")[0])
    return owner.init_values if isinstance(owner, LayerScale) else 1.0
