"""The official `.pt` format of the `dasheng` package (0.0.9): {"model": weights, "config": encoder arguments}."""

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
    r"front_end\..*": None,  # window and filter bank, computed from the mel settings
    r"outputlayer\..*": None,  # classifier head; the file has no class names
}
_HEADS = {192: 3, 768: 12, 1280: 16, 1536: 24}  # heads by width; the releases' files may omit num_heads
_FIXED = {"center": True, "qkv_bias": True, "mlp_ratio": 4, "block_type": "Block", "attention_type": "Attention"}


def read(content: Mapping[str, Any], path: str) -> Stored:
    """Args: content: the loaded file. path: for error messages."""
    state = rename(content["model"], KEYS, path)
    return Stored(architecture_of(content["config"], state, path), state, record={"source": "dasheng"})


def write(stored: Stored, file: Path) -> None:
    """Write a file for `dasheng.pretrained.pretrained.Dasheng.from_pretrained(file)`."""
    mel = LogMel(**stored.architecture["log_mel"])
    state = to_official(stored.encoder)
    state |= {"front_end.0.spectrogram.window": mel.window, "front_end.0.mel_scale.fb": mel.filters}
    torch.save({"model": state, "config": arguments_of(stored.architecture)}, file)


def architecture_of(arguments: Mapping[str, Any], state: Mapping[str, Tensor], path: str) -> dict[str, Any]:
    """Our architecture from the official encoder's arguments, or from the weights' shapes where they are omitted.

    Raises:
        UserError: an argument that this encoder does not support.
    """
    if "patch_embed.proj.weight" not in state:
        raise UserError(f"{path} has no patch_embed.proj.weight; it is not an encoder")
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
    required = {**_FIXED, "win_size": mel["n_fft"], "n_mels": patch_mels, "patch_stride": [patch_mels, patch_frames]}
    for name, value in required.items():
        given = arguments.get(name, value)
        if (list(given) if isinstance(given, tuple | list) else given) != value:
            raise UserError(f"{path} has {name}={given}; this encoder supports only {name}={value}")
    if heads is None:
        raise UserError(f"{path} has no num_heads, and no released encoder has a width of {width}")
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
    """Arguments of the official encoder.

    Raises:
        UserError: the sample rate is not 16 kHz, the only one the official front end supports; there is no final norm.
    """
    if not architecture.get("final_norm", True):
        raise UserError(
            f"this encoder was cut at block {architecture['depth']} and has no final norm, which the official encoder "
            "needs; use --format folder"
        )
    mel = architecture["log_mel"]
    if mel["sample_rate"] != 16000:
        raise UserError(f"the official encoder needs 16000 Hz, this one has {mel['sample_rate']}; use --format folder")
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
    """Our state dict with the official names."""
    return {name.replace("init_bn.", "init_bn.1."): value.contiguous() for name, value in state.items()}
