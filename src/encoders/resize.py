"""Resize weights to another mel or patch grid: positions, patch projection, batch norm."""

from typing import Any

import torch
from timm.layers import resample_patch_embed
from torch import Tensor
from torch.nn.functional import interpolate


def resize(state: dict[str, Tensor], old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Resize `state` from architecture `old` to `new`; also returns a sentence for each change.

    As in the official code, the time table is interpolated to a longer one and cut to a shorter one. If the duration of
    a token changes, it is always interpolated, so that it spans the same seconds.
    """
    state, changes = dict(state), []
    table, length = state["time_pos_embed"], new["max_tokens"]
    if length != table.shape[-1]:
        cut = length < table.shape[-1] and new["patch_frames"] == old["patch_frames"]
        resized = table[..., :length] if cut else interpolate(table, size=(1, length), mode="bilinear")
        state["time_pos_embed"] = resized.contiguous()
        changes.append(f"time table {'cut' if cut else 'interpolated'} from {table.shape[-1]} to {length} tokens")
    patch = [new["log_mel"]["n_mels"], new["patch_frames"]]
    projection = state["patch_embed.proj.weight"]
    if list(projection.shape[2:]) != patch:
        state["patch_embed.proj.weight"] = resample_patch_embed(projection, patch)
        changes.append(f"patch projection resampled from {list(projection.shape[2:])} to {patch} (bands, frames)")
    for name in ("weight", "bias", "running_mean", "running_var"):
        bands = state[f"init_bn.{name}"]
        if len(bands) != patch[0]:
            state[f"init_bn.{name}"] = interpolate(bands[None, None], size=patch[0], mode="linear")[0, 0]
    if len(state["init_bn.weight"]) != old["log_mel"]["n_mels"]:
        changes.append(f"batch norm interpolated from {old['log_mel']['n_mels']} to {patch[0]} bands")
    return state, changes


def same_span(old: dict[str, Any], patch_frames: int) -> int:
    """Number of tokens of `patch_frames` frames that span the same time as the old time table."""
    return max(1, old["max_tokens"] * old["patch_frames"] // patch_frames)


def as_fp32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point tensors to fp32; integer counters stay as they are."""
    return {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in state.items()}
