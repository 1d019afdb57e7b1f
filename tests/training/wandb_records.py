"""What an offline W&B run holds, from its .wandb file (records of protobuf in LevelDB's log format)."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as messages

_BLOCK, _HEAD = 32768, 7  # bytes; a record does not begin in the last six of a block


def records(file: Path) -> Iterator[messages.Record]:
    content, position, data = file.read_bytes(), _HEAD, b""
    while position + _HEAD <= len(content):
        if (left := _BLOCK - position % _BLOCK) < _HEAD:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        data += content[position + _HEAD : position + _HEAD + size]
        position += _HEAD + size
        if kind in (1, 4):  # whole, or last piece
            yield messages.Record.FromString(data)
            data = b""


def of_kind(folder: Path, kind: str) -> list:
    """The messages of a kind, such as "metric", "alert" or "artifact", of all offline runs in a run folder."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [getattr(each, kind) for file in files for each in records(file) if each.WhichOneof("record_type") == kind]


def items(folder: Path, kind: str) -> dict[str, str]:
    """The last JSON of each key of "history", "summary" or "config"; nested keys are joined by dots."""
    found = {}
    for each in of_kind(folder, kind):
        for item in each.item if kind == "history" else each.update:
            found[item.key or ".".join(item.nested_key)] = item.value_json
    return found
