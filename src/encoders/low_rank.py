"""Weights of low-rank adapters (LoRA, Hu et al., 2021): merged into those of the encoder, or in a file of their own.

Names are those of the package `peft`: the matrix `X.weight` of an adapted layer becomes `X.base_layer.weight`, beside
`X.lora_A.default.weight` (r, in) and `X.lora_B.default.weight` (out, r). `src.classification.lora` trains them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.encoders.stored import Stored
from src.errors import UserError
from src.models.classifier import AudioClassifier
from src.models.vit import AudioViT

SCALE = 2.0  # of an adapter's product; lora_alpha / r in peft
_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"
_HEAD = "head."


def merge(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the network without adapters; the products of the adapters are added to the adapted matrices."""
    merged = {}
    for name, value in state.items():
        if name.endswith(_BASE):
            layer = name.removesuffix(_BASE)
            value = value + SCALE * state[layer + _UP] @ state[layer + _DOWN]
        if not name.endswith((_DOWN, _UP)):
            merged[name.replace(".base_layer.", ".")] = value
    return merged


def save_adapters(state: Mapping[str, Tensor], classifier: AudioClassifier, base: str, file: Path) -> None:
    """Write adapters and head alone, a small part of the weights. They fit only the encoder that they were trained on.

    Args:
        state: state dict of the adapted classifier.
        classifier: the same without adapters, for its settings.
        base: checkpoint, export or release name of the encoder.
    """
    small = {name: value.contiguous() for name, value in state.items() if name.endswith((_DOWN, _UP))}
    small |= {name: value.contiguous() for name, value in state.items() if name.startswith(_HEAD)}
    before = {name.replace(".base_layer.", "."): value for name, value in state.items() if name.startswith("encoder.")}
    names = classifier.state_dict().keys()
    about = {
        "encoder": base,
        "digest": _digest({name: value for name, value in before.items() if name in names}),
        "classifier": classifier.settings,
    }
    save_file(small, file, metadata={"adapters": json.dumps(about)})


def read(file: Path, load_encoder: Callable[[str], AudioViT]) -> Stored:
    """Read a file of `save_adapters` as the classifier that was saved.

    Raises:
        UserError: not such a file, or damaged; its encoder has changed, or there is none.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = (opened.metadata() or {}).get("adapters")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error})") from None
    if metadata is None:
        raise UserError(f"{file} holds no adapters; for an export, name its folder")
    about = json.loads(metadata)
    classifier = AudioClassifier(load_encoder(about["encoder"]), **about["classifier"])
    state = {name: value for name, value in classifier.state_dict().items() if name.startswith("encoder.")}
    if _digest(state) != about["digest"]:
        raise UserError(f"{file} was trained on another encoder than {about['encoder']} is now; restore that encoder")
    for name, up in tensors.items():
        if name.endswith(_UP):
            layer = name.removesuffix(_UP)
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + SCALE * up @ tensors[layer + _DOWN]
    return Stored(
        classifier.encoder.architecture,
        {name.removeprefix("encoder."): value for name, value in state.items()},
        head={name.removeprefix(_HEAD): value for name, value in tensors.items() if name.startswith(_HEAD)},
        classifier=about["classifier"],
    )


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights and their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
