"""The official `.pt` of the `dasheng` package (0.0.9): {"model": weights, "config": arguments of the encoder}."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.encoders.stored import Stored, rename
from src.errors import UserError
from src.models.log_mel import LogMel

BLOCK_KEYS = r"blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias)"
KEYS = {
    r"init_bn\.1\.(weight|bias|running_mean|running_var|num_batches_tracked)": r"init_bn.\1",
    r"((?:time|freq)_pos_embed)": r"\1",
    r"(patch_embed\.proj\.(?:weight|bias))": r"\1",
    rf"({BLOCK_KEYS})": r"\1",
    r"(blocks\.\d+\.ls[12]\.gamma)": r"\1",
    r"(norm\.(?:weight|bias))": r"\1",
    r"front_end\..*": None,  # window and filter bank, made from the mel settings
    r"outputlayer\..*": None,  # a classifier's, whose class names the file does not hold
}
_HEADS = {192: 3, 768: 12, 1280: 16, 1536: 24}  # of the releases, whose files may leave them to the function's default
_FIXED = {"center": True, "qkv_bias": True, "mlp_ratio": 4, "block_type": "Block", "attention_type": "Attention"}


def read(content: Mapping[str, Any], place: str) -> Stored:
    """`content`: the loaded file."""
    state = rename(content["model"], KEYS, place)
    return Stored(architecture_of(content["config"], state, place), state, record={"source": "dasheng"})


def write(stored: Stored, file: Path) -> None:
    """`dasheng.pretrained.pretrained.Dasheng.from_pretrained(file)` reads it."""
    mel = LogMel(**stored.architecture["log_mel"])
    state = to_official(stored.encoder)
    state |= {"front_end.0.spectrogram.window": mel.window, "front_end.0.mel_scale.fb": mel.filters}
    torch.save({"model": state, "config": arguments_of(stored.architecture)}, file)


def architecture_of(arguments: Mapping[str, Any], state: Mapping[str, Tensor], place: str) -> dict[str, Any]:
    """Our architecture from the official encoder's arguments; what they leave out, from the weights' shapes.

    Raises:
        UserError: an argument that this encoder cannot follow.
    """
    if "patch_embed.proj.weight" not in state:
        raise UserError(f"{place} lacks patch_embed.proj.weight; it is not an encoder")
    width, _, patch_mels, patch_frames = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    mel = {
        "sample_rate": 16000,
        "n_fft": arguments.get("n_fft", 512),
        "hop_length": arguments.get("hop_size", 160),
        "n_mels": patch_mels,
        "f_min": arguments.get("f_min", 0),
        "f_max": arguments.get("f_max", 8000),
        "floor_db": arguments.get("top_db", 120),
    }
    heads = arguments.get("num_heads", _HEADS.get(width))
    asked = {**_FIXED, "win_size": mel["n_fft"], "n_mels": patch_mels, "patch_stride": [patch_mels, patch_frames]}
    for name, value in asked.items():
        found = arguments.get(name, value)
        if (list(found) if isinstance(found, tuple | list) else found) != value:
            raise UserError(f"{place} was made with {name}={found}; this encoder has {name}={value} only")
    if heads is None:
        raise UserError(f"{place} does not say num_heads, and no release has a width of {width}")
    return {
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "layer_scale": arguments.get("init_values") or 1.0 if "blocks.0.ls1.gamma" in state else None,
        "max_tokens": state["time_pos_embed"].shape[-1] if "time_pos_embed" in state else 252,
        "patch_frames": patch_frames,
        "log_mel": mel,
    }


def arguments_of(architecture: dict[str, Any]) -> dict[str, Any]:
    """The official encoder's arguments.

    Raises:
        UserError: another rate than 16 kHz, which the official front end has built in.
    """
    mel = architecture["log_mel"]
    if mel["sample_rate"] != 16000:
        raise UserError(f"the official encoder takes 16000 Hz, this one {mel['sample_rate']}; export it as a folder")
    patch = [mel["n_mels"], architecture["patch_frames"]]
    return {
        "embed_dim": architecture["width"],
        "depth": architecture["depth"],
        "num_heads": architecture["num_heads"],
        "init_values": architecture["layer_scale"],
        "target_length": architecture["max_tokens"] * architecture["patch_frames"],
        "patch_size": patch,
        "patch_stride": patch,
        "n_mels": mel["n_mels"],
        "n_fft": mel["n_fft"],
        "win_size": mel["n_fft"],
        "hop_size": mel["hop_length"],
        "f_min": mel["f_min"],
        "f_max": mel["f_max"],
        "top_db": mel["floor_db"],
    }


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names to the official ones."""
    return {name.replace("init_bn.", "init_bn.1."): value.contiguous() for name, value in state.items()}
