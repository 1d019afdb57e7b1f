"""Load an encoder or a classifier from a checkpoint of any format.

    from src.encoders.load import load_encoder
    encoder = load_encoder("runs/quickstart/checkpoints/last.ckpt")

Formats: a training checkpoint (a file or a sharded folder), a run folder (its last checkpoint), an exported folder, the
official `.pt`, the Hugging Face format of the official encoders, the names of the official releases, and
`hf://owner/name` on the Hugging Face Hub. Any other path is local.
"""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from src.encoders import dasheng, folder, huggingface, lightning, low_rank
from src.encoders.resize import as_fp32, resize, same_span
from src.encoders.stored import Stored, check_finite, check_fit
from src.errors import UserError
from src.hub_names import hint, hub_repository
from src.models.classifier import AudioClassifier
from src.models.sizes import build_encoder
from src.models.vit import AudioViT


def load_encoder(
    path: str | Path,
    *,
    target_length: int | None = None,
    n_mels: int | None = None,
    patch_frames: int | None = None,
    drop_path: float = 0.0,
    gradient_checkpointing: bool = False,
) -> AudioViT:
    """Load an encoder with its weights: fp32, on the CPU, in evaluation mode.

    Args:
        path: a checkpoint in one of the formats above, the name of a release (`dasheng-base`, `dasheng-0.6B`,
            `dasheng-1.2B`) or `hf://owner/name`, a repository on the Hugging Face Hub.
        target_length: frames (10 ms) of the time table. If it differs from the file's, the table is resized, with a
            warning.
        n_mels: mel bands. If it differs, patch projection and batch norm are resampled, with a warning.
        patch_frames: frames per token; likewise.
        drop_path, gradient_checkpointing: for training, as in `AudioViT`.

    Raises:
        UserError: no such file, not an encoder, a pickle that would run code, missing or unknown weights (listed),
            no network to download a release.
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
    """Load a trained or exported classifier, on the CPU, in evaluation mode.

    Raises:
        UserError: as `load_encoder`; the checkpoint has no classifier head.
    """
    stored = read_checkpoint(path)
    if stored.classifier is None:
        raise UserError(f"{path} is an encoder without classes; name a run, checkpoint or export of a classifier")
    classifier = AudioClassifier(load_encoder(path), **stored.classifier)
    classifier.head.load_state_dict(stored.head)
    return classifier.eval()


def read_checkpoint(path: str | Path) -> Stored:
    """Read the checkpoint at `path` and check that it is complete. Errors as `load_encoder`."""
    location = _find(path)
    stored = _read_folder(location) if location.is_dir() else _read_file(location)
    stored.encoder, stored.decoder = as_fp32(stored.encoder), as_fp32(stored.decoder)
    stored.head = as_fp32(stored.head)
    check_fit(stored.encoder, stored.architecture, str(location))
    check_finite({**stored.encoder, **stored.decoder, **stored.head}, str(location))
    return stored


def _find(path: str | Path) -> Path:
    """The file or folder that holds the weights."""
    location = Path(path).expanduser()
    if location.exists():
        for name in ("best.ckpt", "last.ckpt"):  # a classifier keeps its best one under that name
            if (checkpoint := location / "checkpoints" / name).exists():
                return checkpoint
        if folds := sorted(fold.name for fold in location.glob("fold-*") if fold.is_dir()):
            raise UserError(f"{path} is a run of several folds; name one of them: {path}/{folds[0]}")
        return location
    if repository := huggingface.RELEASES.get(str(path)) or hub_repository(str(path)):
        return huggingface.download(repository)
    raise UserError(
        f"there is no checkpoint {path} (looked in {Path.cwd()}); "
        f"name a file, a folder, or one of {', '.join(huggingface.RELEASES)}{hint(str(path))}"
    )


def _read_folder(path: Path) -> Stored:
    if (path / ".metadata").exists():
        return lightning.read_shards(path)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        for weights in path.glob("*.safetensors"):
            check_content(weights)
        reader = {folder.MODEL_TYPE: folder.read, "dasheng": huggingface.read}[config["model_type"]]
        return reader(path, config)
    except FileNotFoundError:
        raise UserError(f"{path} has no config.json (an export) or .metadata (a sharded checkpoint)") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}/config.json does not describe an encoder ({type(error).__name__}: {error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # safetensors has no base class of errors
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}/model.safetensors is damaged ({error})") from None


def _read_file(file: Path) -> Stored:
    check_content(file)
    if file.suffix == ".safetensors":
        return low_rank.read(file, load_encoder)
    try:
        content = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} is refused: besides weights it contains {code.group(1)}, which would run code"
            ) from None
        raise UserError(f"{file} is damaged or not a checkpoint") from None
    except Exception as error:  # whatever a damaged archive raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is damaged or not a checkpoint ({reason})") from None
    if isinstance(content, dict) and {"state_dict", "global_step"} <= set(content):
        return lightning.read(content, str(file))
    if isinstance(content, dict) and isinstance(content.get("model"), dict) and isinstance(content.get("config"), dict):
        return dasheng.read(content, str(file))
    raise UserError(f"{file} is neither a checkpoint of this project nor an official one (keys model and config)")


def check_content(file: Path) -> None:
    """Recognize files that were not downloaded properly."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
            empty = not opened.tell()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    if empty:
        raise UserError(f"{file} is empty")
    if start.startswith((b"<!doctype", b"<html")):
        raise UserError(f"{file} is a web page, not a checkpoint; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a Git LFS pointer; run git lfs pull")
