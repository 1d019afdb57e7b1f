"""AdamW on named parameter groups, and the learning rate as a function of the optimiser step."""

import math

import torch
from torch import nn

# Parameters whose name ends so are vectors or tables, not matrices: they are not decayed.
NO_DECAY = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "init_bn.weight", "pos_embed", "mask_token", "gamma")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, decayed matrices and the rest, by name: sharding may change shapes but not names."""
    groups: list[dict] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[name.endswith(NO_DECAY)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def make_optimizer(
    module: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """`learning_rate` is the peak; `fused` does the update in one pass over memory."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=learning_rate, betas=betas, fused=True)


def scaled_learning_rate(per_256_clips: float, clips_per_step: float) -> float:
    """The linear scaling rule (Goyal et al., 2017)."""
    return per_256_clips * clips_per_step / 256


def schedule(step: int, warmup_steps: int, steps: int, final_share: float) -> float:
    """Share of the peak learning rate at optimiser step 0, 1, ...: linear warm-up, then a cosine to `final_share`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))
