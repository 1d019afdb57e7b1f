"""Low-rank adapters (LoRA, Hu et al., 2021) in the encoder's blocks, from the package `peft`."""

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.vit import AudioViT

_TARGETS = r".*blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"


def add_adapters(encoder: AudioViT, rank: int, seed: int) -> None:
    """Add an adapter, initially zero, to every matrix of the blocks, in place. Only adapters are trained.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("classify.lora_rank needs the package peft; pip install 'audio-encoder[lora]'") from None
    torch.manual_seed(seed)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_TARGETS), encoder)


def has_adapters(model: nn.Module) -> bool:
    return any(name.endswith("base_layer") for name, _ in model.named_modules())


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of the model without adapters, with their updates merged into the weights."""
    state = {name.replace(".base_layer.", "."): v for name, v in model.state_dict().items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            state[f"{name}.weight"] = module.base_layer.weight.detach() + module.get_delta_weight("default").detach()
    return state


def remove_adapters(model: nn.Module) -> None:
    """Restore the original layers, in place."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "base_layer"):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.base_layer)
