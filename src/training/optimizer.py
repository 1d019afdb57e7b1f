"""AdamW or Muon on named parameter groups, and the learning rate as a function of the optimizer step."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from src.config.settings import OptimizerConfig
from src.training.muon import Muon

# Name suffixes of parameters without weight decay: vectors and tables, not matrices.
NO_DECAY = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "init_bn.weight", "pos_embed", "mask_token", "gamma")


def parameter_groups(module: nn.Module, lr: float, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with weight decay and without; with `config.name=muon` also one of the blocks' matrices.

    They are chosen by name: sharding may change shapes but not names.
    """
    muon = config.name == "muon"
    groups: list[dict] = [
        {"params": [], "lr": lr, "weight_decay": config.weight_decay, "muon": False},
        {"params": [], "lr": lr, "weight_decay": 0.0, "muon": False},
        {"params": [], "lr": lr, "weight_decay": config.weight_decay, "muon": True},
    ]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            number = 1 if name.endswith(NO_DECAY) else 2 if muon and "blocks." in name else 0
            groups[number]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> torch.optim.AdamW:
    """With a peak learning rate per group; `fused`: AdamW updates in one pass over memory."""
    first, second = config.betas
    optimizer = Muon if config.name == "muon" else torch.optim.AdamW
    return optimizer(groups, betas=(first, second), fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine that ends at step `steps`."""
    factor = partial(schedule, warmup_steps=config.warmup_steps, steps=steps, final_share=config.final_share)
    return LambdaLR(optimizer, factor)


def scaled_learning_rate(per_256_clips: float, clips_per_step: float) -> float:
    """The linear scaling rule (Goyal et al., 2017)."""
    return per_256_clips * clips_per_step / 256


def schedule(step: int, warmup_steps: int, steps: int, final_share: float) -> float:
    """Factor of the peak learning rate at optimizer step 0, 1, ...: linear warm-up, then a cosine to `final_share`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def apply_settings(
    optimizer: torch.optim.Optimizer, schedule: LambdaLR, groups: Sequence[dict[str, Any]], config: OptimizerConfig
) -> None:
    """Replace learning rates, weight decay and betas loaded from a checkpoint with the configured ones.

    Moments and the position in the schedule are kept.

    Args:
        groups: as given to `make_optimizer`.
    """
    for number, (group, configured) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        group["weight_decay"], group["initial_lr"] = configured["weight_decay"], configured["lr"]
        group["betas"] = tuple(config.betas)
        schedule.base_lrs[number] = configured["lr"]
        group["lr"] = configured["lr"] * schedule.lr_lambdas[number](schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
