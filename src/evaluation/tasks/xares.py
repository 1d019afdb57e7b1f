"""Tasks as X-ARES distributes them: a folder of tars with audio and a .json of labels beside each clip.

The part of a tar is in its name: train, valid (or validation, dev), test (or eval), or fold and a number.
"""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

from src.data.sources.annotations import in_order
from src.data.sources.shards import ShardSource
from src.data.sources.sidecars import sidecar_key
from src.errors import UserError
from src.evaluation.problem import Kind
from src.evaluation.tasks.known import KNOWN
from src.evaluation.tasks.task import SCENE_METRICS, SPLITS, Clip, Labels, Task, domain_of, require_readable

# What X-ARES's label processors read, in this order (src/tasks/*_task.py)
LABEL_KEYS = (
    "label", "labels", "soundevent", "sound", "instrument_family_str", "speakerid", "emotion", "transcription", "genre",
    "num_speakers",
)  # fmt: skip

_WORDS = {
    "train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "test": "test",
    "eval": "test",
}  # fmt: skip


def read_xares(path: Path) -> Task:
    """Raises: UserError: a tar without a part in its name, a clip without labels, a damaged tar."""
    clips, labels, notes = [], [], set()
    for tar in sorted(path.glob("*.tar")):
        part = _part(tar)
        source = ShardSource(str(tar))
        require_readable(path.name, source)
        members = _read_jsons(tar)
        for number in range(len(source)):
            member = source.path(number).removeprefix(f"{tar}/")
            content = members.get(sidecar_key(member))
            if content is None:
                raise UserError(f"{tar}: {member} has no .json with its labels")
            key = next((key for key in LABEL_KEYS if key in content), None)
            if key is None:
                known = ", ".join(LABEL_KEYS)
                raise UserError(f"{tar}: the .json of {member} has {', '.join(content)}, none of which is in {known}")
            notes.add(f"labels are the key {key} of the .json files")
            clips.append(Clip(source, number))
            labels.append((part, _names(content[key])))
    class_names = in_order({name for _, names in labels for name in names})
    index = {name: number for number, name in enumerate(class_names)}
    kind: Kind = "multilabel" if any(len(names) != 1 for _, names in labels) else "multiclass"
    folds = in_order({part for part, _ in labels if part not in SPLITS})
    if folds and len(folds) < len({part for part, _ in labels}):
        raise UserError(f"{path} has tars of folds and of splits; a task has either")
    known_task = KNOWN.get(path.resolve().name)
    return Task(
        name=path.resolve().name,
        layout="X-ARES",
        clips=clips,
        labels=[Labels(part, tuple(index[name] for name in names)) for part, names in labels],
        class_names=class_names,
        kind=kind,
        metrics=SCENE_METRICS[kind],
        folds=folds,
        domain=known_task.domain if known_task else domain_of(path.resolve().name),
        notes=sorted(notes),
    )


def _part(tar: Path) -> str:
    name = tar.name.lower()
    if fold := re.search(r"fold[-_]?0*(\d+)", name):
        return fold.group(1)
    found = {_WORDS[word] for word in re.split(r"[^a-z]+", name) if word in _WORDS}
    if len(found) != 1:
        raise UserError(f"{tar}: its name says no split; it must hold train, valid, test, or fold and a number")
    return found.pop()


def _read_jsons(tar: Path) -> dict[str, dict[str, Any]]:
    """Content of the .json members by the name without suffix."""
    found = {}
    with tarfile.open(tar) as opened:
        for member in opened:
            if member.isfile() and member.name.endswith(".json"):
                file = opened.extractfile(member)
                assert file is not None
                try:
                    content = json.loads(file.read())
                except ValueError as error:
                    raise UserError(f"{tar}: {member.name} is damaged ({error}); get the tar again") from None
                if not isinstance(content, dict):
                    raise UserError(f"{tar}: {member.name} holds no object {{...}}")
                found[sidecar_key(member.name)] = content
    return found


def _names(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else str(value).split(";")
    return tuple(dict.fromkeys(str(each).strip() for each in values if str(each).strip()))
