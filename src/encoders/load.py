"""Encoders in and out: any checkpoint to an `AudioViT`, and an `AudioViT` to a folder that says all about itself.

    from src.encoders.load import load_encoder
    encoder = load_encoder("runs/quickstart/checkpoints/last.ckpt")

What is read: our training's checkpoint (a file, or a folder of shards), a run's folder (its last checkpoint), our
exported folder, the official `.pt`, the Hugging Face form, and the names of the official releases.
"""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from src.encoders import dasheng, folder, huggingface, lightning
from src.encoders.resize import as_fp32, resize, same_span
from src.encoders.stored import Stored, check_fit
from src.errors import UserError
from src.models.classifier import AudioClassifier
from src.models.sizes import build_encoder
from src.models.vit import AudioViT

RELEASES = {name: f"mispeech/{name}" for name in ("dasheng-base", "dasheng-0.6B", "dasheng-1.2B")}


def load_encoder(
    path: str | Path,
    *,
    target_length: int | None = None,
    n_mels: int | None = None,
    patch_frames: int | None = None,
    drop_path: float = 0.0,
    gradient_checkpointing: bool = False,
) -> AudioViT:
    """An encoder with its weights, fp32, on the CPU, in evaluation mode.

    Args:
        path: any of the forms above, or the name of a release (`dasheng-base`, `dasheng-0.6B`, `dasheng-1.2B`) or
            another repository `owner/name` on the Hugging Face hub.
        target_length: frames (10 ms) of the time table; another than the file's resizes it, with a warning.
        n_mels: mel bands; another number than the file's resamples patch projection and batch norm, with a warning.
        patch_frames: frames a token; the same.
        drop_path, gradient_checkpointing: for training, as in `AudioViT`.

    Raises:
        UserError: nothing there, not an encoder, a pickle that would run code, missing or unknown weights (listed),
            no network for a name.
    """
    stored = read_checkpoint(path)
    architecture, state = stored.architecture, stored.encoder
    wanted = dict(architecture, log_mel=dict(architecture["log_mel"]))
    if n_mels is not None:
        wanted["log_mel"]["n_mels"] = n_mels
    if patch_frames is not None:
        wanted.update(patch_frames=patch_frames, max_tokens=same_span(architecture, patch_frames))
    if target_length is not None:
        wanted["max_tokens"] = target_length // wanted["patch_frames"]
    state, resized = resize(state, architecture, wanted)
    for sentence in resized:
        warnings.warn(f"{path}: {sentence}", stacklevel=2)
    encoder = build_encoder(wanted, drop_path, gradient_checkpointing)
    encoder.load_state_dict(state, assign=True)
    encoder.log_mel.to_empty(device="cpu")
    encoder.log_mel.reset_buffers()
    return encoder.eval()


def load_classifier(path: str | Path) -> AudioClassifier:
    """A classifier of our training or an export of one, on the CPU, in evaluation mode.

    Raises:
        UserError: as `load_encoder`; an encoder without a head.
    """
    stored = read_checkpoint(path)
    if stored.classifier is None:
        raise UserError(f"{path} is an encoder without classes; give a classifier's run, checkpoint or export")
    classifier = AudioClassifier(load_encoder(path), **stored.classifier)
    classifier.head.load_state_dict(stored.head)
    return classifier.eval()


def read_checkpoint(path: str | Path) -> Stored:
    """What is at `path`, checked to be whole. Arguments and errors as `load_encoder`."""
    place = _find(path)
    stored = _read_folder(place) if place.is_dir() else _read_file(place)
    stored.encoder, stored.decoder = as_fp32(stored.encoder), as_fp32(stored.decoder)
    stored.head = as_fp32(stored.head)
    check_fit(stored.encoder, stored.architecture, str(place))
    return stored


def _find(path: str | Path) -> Path:
    place = Path(path).expanduser()
    if place.exists():
        if (last := place / "checkpoints" / "last.ckpt").exists():
            return last
        return place
    name = RELEASES.get(str(path), str(path))
    if (re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not place.parent.is_dir()) or str(path) in RELEASES:
        return huggingface.download(name)
    raise UserError(
        f"there is no checkpoint {path} (looked in {Path.cwd()}); "
        f"give a file, a folder, or one of {', '.join(RELEASES)}"
    )


def _read_folder(place: Path) -> Stored:
    if (place / ".metadata").exists():
        return lightning.read_shards(place)
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        reader = {folder.MODEL_TYPE: folder.read, "dasheng": huggingface.read}[config["model_type"]]
        return reader(place, config)
    except FileNotFoundError:
        raise UserError(f"{place} has no config.json; an export has one, a sharded checkpoint a .metadata") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{place}/config.json is not that of an encoder ({type(error).__name__}: {error})") from None
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{place}/model.safetensors is damaged ({error})") from None  # safetensors has no base error


def _read_file(place: Path) -> Stored:
    try:
        content = torch.load(place, map_location="cpu", mmap=zipfile.is_zipfile(place), weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{place} is refused: beside weights it holds {code.group(1)}, which would run code"
            ) from None
        raise UserError(f"{place} is not a checkpoint, or is damaged") from None
    except Exception as error:  # whatever a damaged archive raises
        raise UserError(f"{place} is not a checkpoint, or is damaged ({str(error).splitlines()[0]})") from None
    if isinstance(content, dict) and {"state_dict", "global_step"} <= set(content):
        return lightning.read(content, str(place))
    if isinstance(content, dict) and isinstance(content.get("model"), dict) and isinstance(content.get("config"), dict):
        return dasheng.read(content, str(place))
    raise UserError(f"{place} is neither a checkpoint of this project nor an official one (model and config)")
