"""The Hugging Face format of the official encoders (`mispeech/dasheng-*`): config.json and model.safetensors.

Weights have the official names prefixed with `encoder.`; the front end is a feature extractor without weights.
"""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from src.encoders.dasheng import KEYS, architecture_of, arguments_of, to_official
from src.encoders.stored import Stored, rename
from src.errors import UserError

RELEASES = {name: f"mispeech/{name}" for name in ("dasheng-base", "dasheng-0.6B", "dasheng-1.2B")}
_KEYS = {rf"encoder\.{pattern}": ours for pattern, ours in KEYS.items()} | {r"outputlayer\..*": None}
_NAMES = {768: "dasheng-base", 1280: "dasheng-0.6B", 1536: "dasheng-1.2B"}
_FILES = ("config.json", "model.safetensors")


def read(folder: Path, config: dict) -> Stored:
    """Args: config: the folder's config.json."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{folder} has a config.json but no model.safetensors")
    state = rename(load_file(weights), _KEYS, str(weights))
    arguments = {**config, **config.get("encoder_kwargs", {})}
    extractor = folder / "preprocessor_config.json"
    if extractor.exists():
        mel = json.loads(extractor.read_text(encoding="utf-8"))
        arguments |= {
            name: mel[name] for name in ("n_fft", "win_size", "hop_size", "f_min", "f_max", "center") if name in mel
        }
    return Stored(
        architecture_of(arguments, state, str(folder)), state, record={"source": config.get("name", "dasheng")}
    )


def write(stored: Stored, folder: Path) -> None:
    """Write into an empty folder, without code: `DashengModel` is on the Hub and in its package."""
    arguments = arguments_of(stored.architecture)
    name = _NAMES.get(stored.architecture["width"], "dasheng-base")
    config = {
        "architectures": ["DashengModel"],
        "model_type": "dasheng",
        "name": name,
        "loss": "BCELoss",
        **arguments,
        "encoder_kwargs": arguments,
    }
    mel = {key: arguments[key] for key in ("f_min", "f_max", "n_fft", "win_size", "hop_size")}
    extractor = {
        "feature_extractor_type": "DashengFeatureExtractor",
        "feature_size": arguments["n_mels"],
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "center": True,
        "return_attention_mask": False,
        **mel,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2) + "\n", encoding="utf-8")
    state = {f"encoder.{name}": value for name, value in to_official(stored.encoder).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def download(name: str) -> Path:
    """Download a repository from the Hugging Face Hub, or take it from the client's cache; returns its folder.

    Raises:
        UserError: huggingface_hub is not installed, no network, no such repository.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"{name} is on the Hugging Face Hub; pip install huggingface_hub, or download it") from None
    try:
        return Path(
            snapshot_download(name, allow_patterns=[*_FILES, "preprocessor_config.json", "decoder.safetensors"])
        )
    except Exception as error:  # the client's errors have no common base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the encoder {name} cannot be downloaded from the Hugging Face Hub ({reason}); "
            f"check the name and the network, or give the path of a local file"
        ) from None
