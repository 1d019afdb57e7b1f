"""Save an encoder to a self-contained folder; write files and folders atomically."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from src.atomic import writing, writing_folder
from src.encoders import folder
from src.encoders.stored import Stored
from src.errors import UserError
from src.models.classifier import AudioClassifier
from src.models.vit import AudioViT

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # of a full disk, raised by Python, torch or safetensors


def save_encoder(
    encoder: AudioViT,
    path: str | Path,
    *,
    decoder: nn.Module | None = None,
    classifier: AudioClassifier | None = None,
    record: dict[str, Any] | None = None,
) -> None:
    """Write an export folder, atomically.

    Args:
        path: a folder that does not exist yet.
        decoder: of the masked autoencoder, needed to continue pretraining.
        classifier: a classifier with this encoder; its head and class names are saved too.
        record: training record; plain values.

    Raises:
        UserError: the folder already exists, no permission, disk full.
    """
    stored = Stored(
        encoder.architecture,
        _state(encoder),
        decoder.architecture if decoder is not None else None,  # type: ignore[arg-type]
        _state(decoder) if decoder is not None else {},
        _state(classifier.head) if classifier is not None else {},
        classifier.settings if classifier is not None else None,
        record or {},
    )
    write_folder(Path(path), lambda partial: folder.write(stored, partial))


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which is renamed to `target` when complete.

    Raises:
        UserError: `target` exists and is not empty; no permission, disk full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} already exists; choose another name or remove it")
    try:
        with writing_folder(target) as partial:
            write(partial)
    except WRITE_ERRORS as error:
        raise UserError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def write_file(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new file, which is renamed to `target` when complete. Errors as `write_folder`."""
    if target.exists():
        raise UserError(f"{target} already exists; choose another name or remove it")
    try:
        with writing(target) as partial:
            write(partial)
    except WRITE_ERRORS as error:
        raise UserError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}
