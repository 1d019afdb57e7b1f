"""What every format is read into and written from, and how foreign names of weights become ours."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from src.errors import UserError
from src.models.sizes import build_encoder

Keys = Mapping[str, str | None]  # pattern of a foreign name: our name (re.sub), None for what is dropped on purpose


@dataclass
class Stored:
    """An encoder with all that belongs to it, as plain values and tensors.

    Attributes:
        architecture: as `AudioViT.architecture`. encoder: its state, our names.
        decoder_architecture, decoder: the same of the pretraining decoder; None and empty if the file has none.
        head: state of `src.models.classifier.make_head`; empty if there is none.
        classifier: of the head, as `AudioClassifier.settings`; None if there is no head.
        record: how it was trained: settings, steps, versions; whatever the file says.
    """

    architecture: dict[str, Any]
    encoder: dict[str, Tensor]
    decoder_architecture: dict[str, Any] | None = None
    decoder: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    classifier: dict[str, Any] | None = None
    record: dict[str, Any] = field(default_factory=dict)


def rename(state: Mapping[str, Tensor], keys: Keys, place: str) -> dict[str, Tensor]:
    """`state` with our names.

    Raises:
        UserError: a name that no pattern covers; the sentence lists all of them.
    """
    renamed, unknown = {}, []
    for name, value in state.items():
        pattern = next((pattern for pattern in keys if re.fullmatch(pattern, name)), None)
        if pattern is None:
            unknown.append(name)
        elif (ours := keys[pattern]) is not None:
            renamed[re.sub(pattern, ours, name)] = value
    if unknown:
        raise UserError(f"{place} holds weights that this encoder does not have: {_some(unknown)}")
    return renamed


def check_fit(state: Mapping[str, Tensor], architecture: dict[str, Any], place: str) -> None:
    """That the weights are those of the architecture.

    Raises:
        UserError: lists what is missing, unknown or of another shape.
    """
    expected = build_encoder(architecture).state_dict()
    wrong = [
        f"{name} {list(state[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = {
        "lacks": [name for name in expected if name not in state],
        "holds weights that this encoder does not have:": [name for name in state if name not in expected],
        "has other shapes:": wrong,
    }
    said = "; ".join(f"{what} {_some(names)}" for what, names in faults.items() if names)
    if said:
        raise UserError(f"{place} {said}; it is not a whole encoder of this architecture")


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
