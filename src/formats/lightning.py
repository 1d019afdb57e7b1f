"""Checkpoints of our own training: a `.ckpt` file, or a folder of shards (torch.distributed.checkpoint)."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from src.errors import UserError
from src.formats.stored import Stored

_ENCODER, _DECODER, _HEAD = "model.encoder.", "model.decoder.", "model.head."


def read(content: Mapping[str, Any], place: str) -> Stored:
    """`content`: the loaded file."""
    if "architecture" not in content.get("run", {}):
        raise UserError(f"{place} is a Lightning checkpoint, but not one of this project: it has no run.architecture")
    run, state = content["run"], content["state_dict"]
    unknown = [name for name in state if not name.startswith((_ENCODER, _DECODER, _HEAD))]
    if unknown:
        raise UserError(f"{place} holds weights that this project does not write: {', '.join(unknown[:12])}")

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


def read_shards(folder: Path) -> Stored:
    """The weights alone are read, not the optimiser's state; in one process, without a process group."""
    if not (folder / "meta.pt").exists():
        raise UserError(f"{folder} has shards but no meta.pt: the save was cut off, take the checkpoint before it")
    content = torch.load(folder / "meta.pt", map_location="cpu", weights_only=True)
    entries = _read_metadata(folder / ".metadata").state_dict_metadata
    names = [name for name in entries if name.startswith("state_dict.")]
    state = {}
    for name in names:
        entry = entries[name]
        assert isinstance(entry, TensorStorageMetadata), f"{name} is not a tensor"
        state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group
            dcp.load(state, checkpoint_id=folder, no_dist=True)
    except Exception as error:  # whatever a damaged shard raises
        raise UserError(f"{folder} is not a whole sharded checkpoint ({str(error).splitlines()[0]})") from None
    weights = {name.removeprefix("state_dict."): value for name, value in state.items()}
    return read({**content, "state_dict": weights}, str(folder))


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
    """`.metadata` is a pickle; only what torch.distributed.checkpoint puts there is made."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_CLASSES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a checkpoint")
        return super().find_class(module, name)


def _read_metadata(file: Path) -> Metadata:
    try:
        with open(file, "rb") as opened:
            return _MetadataUnpickler(opened).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise UserError(f"{file} is refused: {error}; take a checkpoint that you trust") from None
