"""Our export format: a self-contained folder that `transformers` can load too (src/adapters/transformers.py).

config.json          architecture, mel settings, class names, training settings
model.safetensors    `encoder.*`, and `head.*` of a classifier
decoder.safetensors  the pretraining decoder, to continue pretraining
README.md            model card
*.py                 code for `AutoModel.from_pretrained(folder, trust_remote_code=True)`
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from src.encoders.huggingface import RELEASES
from src.encoders.stored import Stored
from src.errors import UserError
from src.models.log_mel import LogMel

MODEL_TYPE = "audio-encoder"
_PRIVATE = ("runs_folder", "tracking", "callbacks", "wandb_id")  # of a training record
_PATHS = ("path", "init_from")  # kept if they are names on the Hub
_SOURCE = Path(__file__).parents[1]
_CODE = {  # file in the folder: file under src
    "modeling_audio_encoder.py": "adapters/transformers.py",
    "classifier.py": "models/classifier.py",
    "vit.py": "models/vit.py",
    "log_mel.py": "models/log_mel.py",
}


def read(folder: Path, config: dict[str, Any]) -> Stored:
    """Args: config: the folder's config.json."""
    weights, decoder = folder / "model.safetensors", folder / "decoder.safetensors"
    if not weights.exists():
        raise UserError(f"{folder} has a config.json but no model.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}}
    for name, value in load_file(weights).items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise UserError(f"{weights} contains {name}; names have to start with encoder. or head.")
        parts[part][rest] = value
    return Stored(
        config["encoder"],
        parts["encoder"],
        config.get("decoder") if decoder.exists() else None,
        load_file(decoder) if decoder.exists() else {},
        parts["head"],
        config.get("classifier"),
        config.get("training", {}),
    )


def write(stored: Stored, folder: Path) -> None:
    """Write into an empty folder."""
    weights = {f"encoder.{name}": value.contiguous() for name, value in stored.encoder.items()}
    weights |= {f"head.{name}": value.contiguous() for name, value in stored.head.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if stored.decoder:
        save_file({name: value.contiguous() for name, value in stored.decoder.items()}, folder / "decoder.safetensors")
    config = _config(stored)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    extractor = {
        "feature_extractor_type": "AudioEncoderFeatureExtractor",
        "auto_map": {"AutoFeatureExtractor": "modeling_audio_encoder.AudioEncoderFeatureExtractor"},
        "sampling_rate": config["sample_rate"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(stored, config), encoding="utf-8")
    for name, source in _CODE.items():
        code = (_SOURCE / source).read_text(encoding="utf-8")
        (folder / name).write_text(code.replace("from src.models.", "from ."), encoding="utf-8")


def _config(stored: Stored) -> dict[str, Any]:
    architecture = stored.architecture
    mel = architecture["log_mel"]
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["AudioEncoderForAudioClassification" if stored.head else "AudioEncoderModel"],
        "auto_map": {
            "AutoConfig": "modeling_audio_encoder.AudioEncoderConfig",
            "AutoModel": "modeling_audio_encoder.AudioEncoderModel",
            "AutoModelForAudioClassification": "modeling_audio_encoder.AudioEncoderForAudioClassification",
        },
        "sample_rate": mel["sample_rate"],
        "embed_dim": architecture["width"],
        "hop_seconds": architecture["patch_frames"] * mel["hop_length"] / mel["sample_rate"],
        "encoder": architecture,
        "decoder": stored.decoder_architecture if stored.decoder else None,
        "classifier": stored.classifier,
        **_transformers_labels(stored.classifier),
        "training": shareable(stored.record),
    }


def shareable(record: Any) -> Any:
    """A training record without what is private to a machine or a person: local paths, trackers, callbacks."""
    if isinstance(record, list):
        return [shareable(each) for each in record]
    if not isinstance(record, dict):
        return record
    return {
        key: shareable(value)
        for key, value in record.items()
        if key not in _PRIVATE and (key not in _PATHS or value is None or _is_public(str(value)))
    }


def _is_public(path: str) -> bool:
    return path.startswith("hf://") or path in RELEASES


def _transformers_labels(classifier: dict[str, Any] | None) -> dict[str, Any]:
    """Keys for the `audio-classification` pipeline."""
    if classifier is None:
        return {}
    names, kind = classifier["class_names"], "multi" if classifier["multi"] else "single"
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": dict(enumerate(names)), "label2id": numbers, "problem_type": f"{kind}_label_classification"}


def _card(stored: Stored, config: dict[str, Any]) -> str:
    """The model card, with YAML metadata for the Hub."""
    millions = sum(value.numel() for value in stored.encoder.values()) / 1e6
    architecture, mel = stored.architecture, LogMel(**stored.architecture["log_mel"])
    tag = "audio-classification" if stored.head else "feature-extraction"
    step = stored.record.get("step")
    trained = f"Trained for {step} steps; the settings are in `config.json`.\n" if step else ""
    classes = f"Classes: {', '.join(stored.classifier['class_names'])}.\n\n" if stored.classifier else ""
    return f"""---
library_name: transformers
pipeline_tag: {tag}
tags: [audio, masked-autoencoder, dasheng]
---
# Audio encoder

A masked audio encoder following "Scaling up masked audio encoder learning for general audio classification" (Dinkel
et al., Interspeech 2024): width {architecture["width"]}, {architecture["depth"]} blocks, {millions:.1f} M parameters.
Input: mono audio of any length at {config["sample_rate"]} Hz, in [-1, 1]. Output: {config["embed_dim"]} values every
{1000 * config["hop_seconds"]:.0f} ms. The mel front end ({mel.n_mels} bands, {mel.f_min:.0f} to {mel.f_max:.0f} Hz)
is part of the model.

{trained}
{classes}```python
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
output = model(waveform)  # (B, T)
output.last_hidden_state  # (B, N, {config["embed_dim"]})
output.pooler_output      # (B, {config["embed_dim"]})
```

Requires torch, torchaudio, timm and transformers.
"""
