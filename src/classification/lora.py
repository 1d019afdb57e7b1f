"""Low-rank adapters (LoRA, Hu et al., 2021) in the encoder's blocks, from the package `peft`."""

import torch
from torch import nn

from src.encoders.low_rank import SCALE
from src.errors import UserError
from src.models.vit import AudioViT

_TARGETS = r".*blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"


def add_adapters(encoder: AudioViT, rank: int, seed: int) -> None:
    """Add an adapter, initially zero, to every matrix of the blocks, in place. Only adapters are trained.

    Raises:
        UserError: peft is not installed; the encoder has no blocks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("classify.lora_rank needs the package peft; pip install 'audio-encoder[lora]'") from None
    if not encoder.depth:
        raise UserError(f"classify.lora_rank={rank} adapts blocks, but classify.layer=0 reads none; set one to null")
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=_TARGETS)  # type: ignore[arg-type]
    inject_adapter_in_model(config, encoder)


def has_adapters(model: nn.Module) -> bool:
    return any(name.endswith("base_layer") for name, _ in model.named_modules())


def remove_adapters(model: nn.Module) -> None:
    """Restore the original layers, in place."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
