"""`Stored`, the common form of all formats, and the renaming of foreign weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from src.errors import UserError
from src.models.sizes import build_encoder

Keys = Mapping[str, str | None]  # regex of a foreign name: our name (for re.sub), or None to drop the weight


@dataclass
class Stored:
    """Content of a checkpoint, as plain values and tensors.

    Attributes:
        architecture: as `AudioViT.architecture`.
        encoder: state dict of the encoder, with our names.
        decoder_architecture, decoder: the same for the pretraining decoder; None and empty if there is none.
        head: state dict of `src.models.classifier.make_head`; empty if there is none.
        classifier: `AudioClassifier.settings`; None if there is no head.
        record: how it was trained (settings, steps, versions), as far as the file says.
    """

    architecture: dict[str, Any]
    encoder: dict[str, Tensor]
    decoder_architecture: dict[str, Any] | None = None
    decoder: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    classifier: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)


def rename(state: Mapping[str, Tensor], keys: Keys, path: str) -> dict[str, Tensor]:
    """Rename the weights in `state` to our names.

    Raises:
        UserError: names that no pattern matches; the message lists them.
    """
    renamed, unknown = {}, []
    for name, value in state.items():
        pattern = next((pattern for pattern in keys if re.fullmatch(pattern, name)), None)
        if pattern is None:
            unknown.append(name)
        elif (ours := keys[pattern]) is not None:
            renamed[re.sub(pattern, ours, name)] = value
    if unknown:
        raise UserError(f"{path} has weights that this encoder does not have: {_some(unknown)}")
    return renamed


def check_fit(state: Mapping[str, Tensor], architecture: dict[str, Any], path: str) -> None:
    """Check that the weights match the architecture.

    Raises:
        UserError: weights are missing, unknown or of another shape; the message lists them.
    """
    expected = build_encoder(architecture).state_dict()
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = {
        "has no": [name for name in expected if name not in state],
        "has weights that this encoder does not have:": [name for name in state if name not in expected],
        "has weights of other shapes:": wrong,
    }
    if any(faults.values()):
        listed = "; ".join(f"{what} {_some(names)}" for what, names in faults.items() if names)
        raise UserError(f"{path} {listed}; it is not a complete encoder of this architecture")


def check_finite(state: Mapping[str, Tensor], path: str) -> None:
    """Raises UserError: weights that are NaN or inf; the message lists them."""
    wrong = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise UserError(
            f"{path} has weights that are NaN or inf: {_some(wrong)}; its training diverged, or the file is damaged: "
            "take an earlier checkpoint"
        )


def _some(names: list[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
