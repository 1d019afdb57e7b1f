"""Training checkpoints: a `.ckpt` file, or a sharded folder (torch.distributed.checkpoint)."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from src.encoders.low_rank import merge
from src.encoders.stored import Stored
from src.errors import UserError

_ENCODER, _DECODER, _HEAD = "model.encoder.", "model.decoder.", "model.head."


def read(content: Mapping[str, Any], path: str) -> Stored:
    """Args: content: the loaded file. path: for error messages."""
    if "architecture" not in content.get("run", {}):
        raise UserError(f"{path} is a Lightning checkpoint, but not from this project: it has no run.architecture")
    run, state = content["run"], merge(content["state_dict"])
    unknown = [name for name in state if not name.startswith((_ENCODER, _DECODER, _HEAD))]
    if unknown:
        raise UserError(f"{path} contains weights that this project does not write: {', '.join(unknown[:12])}")

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    return Stored(
        run["architecture"]["encoder"],
        part(_ENCODER),
        run["architecture"].get("decoder"),
        part(_DECODER),
        part(_HEAD),
        run["architecture"].get("classifier"),
        record={"step": content["global_step"], **{key: run[key] for key in ("config", "versions") if key in run}},
    )


def is_sharded(path: Path) -> bool:
    """Whether `path` is a sharded checkpoint, complete or not."""
    return (path / ".metadata").exists()


def read_about(path: Path) -> dict[str, Any]:
    """Load a checkpoint lazily: the tensors of a file are memory-mapped, those of shards left out.

    Raises:
        UserError: a sharded checkpoint without meta.pt.
        Exception: whatever a damaged archive raises.
    """
    if path.is_dir():
        if not (path / "meta.pt").exists():
            raise UserError(f"{path} has shards but no meta.pt: the save was interrupted; use the previous checkpoint")
        path = path / "meta.pt"
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def read_shards(folder: Path) -> Stored:
    """Read the weights of a sharded checkpoint, not the optimizer state; needs no process group."""
    return read(_read_tensors(folder, ("state_dict.",)), str(folder))


def read_training(folder: Path) -> dict[str, Any]:
    """Read a sharded checkpoint, written by any number of processes, into the content of an unsharded file.

    Raises:
        UserError: as `read_shards`.
    """
    content = _read_tensors(folder, ("state_dict.", "optimizer_0.state."))
    states: dict[str, dict[str, Any]] = {}
    for entry, value in content.pop("optimizer").items():
        name, _, key = entry.rpartition(".")
        states.setdefault(name, {})[key] = value
    order = [name for group in content["optimizer_groups"] for name in group["names"]]
    groups = [{**group, "params": group["names"]} for group in content["optimizer_groups"]]
    for group in groups:
        group.pop("names")
    content["optimizer_states"] = [by_number({"state": states, "param_groups": groups}, order)]
    return content


def by_number(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Optimizer state keyed by parameter name -> keyed by the index in `names`, as in torch.optim."""
    return _rename(state, {name: number for number, name in enumerate(names)})


def by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Inverse of `by_number`."""
    return _rename(state, dict(enumerate(names)))


def _rename(state: dict[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [new[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {new[old]: value for old, value in state["state"].items()}, "param_groups": groups}


def _read_tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Any]:
    """meta.pt with the weights as "state_dict" and optimizer tensors as "optimizer"; runs no code from the files."""
    content = read_about(folder)
    entries = _read_metadata(folder / ".metadata").state_dict_metadata
    tensors = {}
    for name in (name for name in entries if name.startswith(prefixes)):
        entry = entries[name]
        assert isinstance(entry, TensorStorageMetadata), f"{name} is not a tensor"
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the missing process group
            dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    except Exception as error:  # whatever a damaged shard raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} is not a complete sharded checkpoint ({reason})") from None

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return {**content, "state_dict": part("state_dict."), "optimizer": part("optimizer_0.state.")}


_CHECKPOINT = "torch.distributed.checkpoint"
_METADATA_CLASSES = {
    f"{_CHECKPOINT}.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip


class _MetadataUnpickler(pickle.Unpickler):
    """`.metadata` is a pickle; only the classes that torch.distributed.checkpoint writes are allowed."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint")
        return super().find_class(module, name)


def _read_metadata(file: Path) -> Metadata:
    try:
        with open(file, "rb") as opened:
            return _MetadataUnpickler(opened).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise UserError(f"{file} is refused: {error}; use a checkpoint that you trust") from None
