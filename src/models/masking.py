"""Random masks: a fixed fraction of each clip's real tokens, masked in groups of adjacent tokens.

A clip's mask is a pure function of its seed and length; it does not depend on the batch, the device or the number of
processes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """mask: (B, N) bool, True where a real token is masked.
    masked: (M,) the masked tokens' positions in the flattened mask, ascending.
    visible: (B, K) indices of the visible tokens; K is that of the longest clip.
    visible_valid: (B, K) bool, False on surplus entries of shorter clips; None when there are none."""

    mask: Tensor
    masked: Tensor
    visible: Tensor
    visible_valid: Tensor | None


def group_mask(
    seeds: Tensor,
    num_tokens: int,
    valid: Tensor | None,
    mask_ratio: float = 0.75,
    group_size: int = 2,
    num_masked: int | None = None,
) -> Mask:
    """Mask `mask_ratio` of each clip's tokens; at least one stays visible.

    Args:
        seeds: (B,) integers, one per clip.
        num_tokens: N.
        valid: (B, N) bool, True for real tokens, which come first; None when all are real.
        mask_ratio: in [0, 1). A clip of n tokens keeps max(1, floor(n (1 - mask_ratio))) visible.
        group_size: adjacent tokens masked together (the last visible group may be cut, as in the official code).
        num_masked: M, the sum of `count_masked` over the clips; None reads it from the device, which synchronizes.
    """
    assert 0.0 <= mask_ratio < 1.0, mask_ratio
    token = torch.arange(num_tokens, device=seeds.device)
    noise = hash_noise(seeds[:, None], token[None] // group_size)  # equal within a group
    if valid is None:
        keep = torch.full_like(seeds, _num_kept(num_tokens, mask_ratio))
        num_masked = len(seeds) * count_masked(num_tokens, mask_ratio)
    else:
        noise = noise.masked_fill(~valid, torch.inf)
        kept_of = torch.tensor([_num_kept(count, mask_ratio) for count in range(num_tokens + 1)])
        keep = kept_of.to(seeds.device, non_blocking=True)[valid.sum(1)]
    order = noise.argsort(dim=1, stable=True)
    visible = torch.zeros_like(order).scatter(1, order, token.expand_as(order)) < keep[:, None]
    mask = ~visible if valid is None else ~visible & valid
    num_masked = int(mask.sum()) if num_masked is None else num_masked
    masked = torch.searchsorted(mask.flatten().cumsum(0), torch.arange(1, num_masked + 1, device=mask.device))
    max_kept = _num_kept(num_tokens, mask_ratio)
    visible_valid = None if valid is None else token[:max_kept] < keep[:, None]
    return Mask(mask, masked, order[:, :max_kept], visible_valid)


def count_masked(num_tokens: int, mask_ratio: float) -> int:
    """Masked tokens of a clip of `num_tokens`."""
    return num_tokens - _num_kept(num_tokens, mask_ratio)


def _num_kept(num_tokens: int, mask_ratio: float) -> int:
    return max(1, int(num_tokens * (1 - mask_ratio) + 1e-4))


def hash_noise(seed: Tensor, index: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), a hash of two broadcastable integer tensors (murmur3's 32-bit finalizer)."""
    value = (seed & 0xFFFFFFFF) ^ ((seed >> 32) & 0xFFFFFFFF) * 0x9E3779B1
    value = _mix_bits(value & 0xFFFFFFFF)
    value = _mix_bits((value + (index + 1) * 0x9E3779B9) & 0xFFFFFFFF)
    return (value >> 8).float() / 2**24


def _mix_bits(value: Tensor) -> Tensor:
    """Hash 32-bit integers. Products wrap modulo 2^64; only the low 32 bits are kept."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)
