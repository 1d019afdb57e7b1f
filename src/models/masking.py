"""Which tokens the encoder sees: a share of each clip's real tokens, hidden in groups of neighbours.

The mask of a clip is a pure function of the clip's own seed and length: the batch around it, the device and
the number of processes do not change it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """mask: (B, N) bool, True where a real token is hidden.
    visible: (B, K) indices of the tokens that are seen, as many as the longest clip has.
    visible_valid: (B, K) bool, False on the surplus of shorter clips; None when there is none."""

    mask: Tensor
    visible: Tensor
    visible_valid: Tensor | None


def group_mask(
    seeds: Tensor, num_tokens: int, valid: Tensor | None, mask_ratio: float = 0.75, group_size: int = 2
) -> Mask:
    """Hide `mask_ratio` of each clip's tokens; at least one stays visible.

    Args:
        seeds: (B,) integers, one a clip.
        num_tokens: N of the batch.
        valid: (B, N) bool, the real tokens of each clip, from the left; None when all are.
        mask_ratio: 0 <= mask_ratio < 1. A clip of n tokens keeps floor(n (1 - mask_ratio)) of them, or one.
        group_size: neighbours that are hidden together (the last group kept may be cut, as in the official code).
    """
    assert 0.0 <= mask_ratio < 1.0, mask_ratio
    token = torch.arange(num_tokens, device=seeds.device)
    noise = hash_noise(seeds[:, None], token[None] // group_size)  # equal within a group
    if valid is None:
        keep = torch.full_like(seeds, _num_kept(num_tokens, mask_ratio))
    else:
        noise = noise.masked_fill(~valid, torch.inf)
        keep = (valid.sum(1) * (1 - mask_ratio) + 1e-4).floor().long().clamp(min=1)
    order = noise.argsort(dim=1, stable=True)
    seen = torch.zeros_like(order).scatter(1, order, token.expand_as(order)) < keep[:, None]
    mask = ~seen if valid is None else ~seen & valid
    most = _num_kept(num_tokens, mask_ratio)
    visible_valid = None if valid is None else token[:most] < keep[:, None]
    return Mask(mask, order[:, :most], visible_valid)


def _num_kept(num_tokens: int, mask_ratio: float) -> int:
    return max(1, int(num_tokens * (1 - mask_ratio) + 1e-4))


def hash_noise(seed: Tensor, index: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), a pure function of two integer tensors that broadcast (murmur3's 32-bit finaliser)."""
    value = (seed & 0xFFFFFFFF) ^ ((seed >> 32) & 0xFFFFFFFF) * 0x9E3779B1
    value = _scramble(value & 0xFFFFFFFF)
    value = _scramble((value + (index + 1) * 0x9E3779B9) & 0xFFFFFFFF)
    return (value >> 8).float() / 2**24


def _scramble(value: Tensor) -> Tensor:
    """Integers under 2^32 to integers under 2^32; products wrap modulo 2^64, of which the low half is kept."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)
