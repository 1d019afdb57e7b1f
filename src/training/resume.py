"""Compare settings with those of a resumed checkpoint: every change is applied or refused, never ignored."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.config.settings import Config
from src.errors import UserError

# The checkpoint's weights, optimizer state, position in the data or floors depend on these: a change would have no
# effect, or what is saved would not fit.
FIXED = (
    "seed", "model.size", "model.init_from", "model.layer_scale", "model.dct_patches", "optimizer.name", "check.train",
    "check.test", "check.layer", "check.pooling", "check.max_clips", "classify.method", "classify.level",
    "classify.task", "classify.layer", "classify.pooling", "classify.lora_rank", "classify.test_fold", "classify.folds",
)  # fmt: skip
# These do not affect training.
NOT_COMPARED = ("name", "runs_folder")


def compare_settings(config: Config, before: dict[str, Any], checkpoint: Path) -> list[str]:
    """One line for each setting that changed since the checkpoint; the changes are applied.

    Args:
        before: the checkpoint's settings, nested.

    Raises:
        UserError: a setting in `FIXED` changed, or one of the two is pretraining and the other classification.
    """
    now = asdict(config)
    if (before.get("classify") is None) != (config.classify is None):
        kinds = ("pretraining", "classification") if config.classify else ("classification", "pretraining")
        raise UserError(f"{checkpoint} is from {kinds[0]}, but the settings are for {kinds[1]}; start a new run")
    old, new = flatten(before), flatten(now)
    changed = [key for key in {**new, **old} if _differs(key, old, new) and key not in NOT_COMPARED]
    for key in changed:
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(
                f"{checkpoint} was trained with {key}={_at(old, key)}, but the settings have {key}={_at(new, key)}; "
                f"set it back or start a new run"
            )
    return [f"{key}: {_at(old, key)} in the checkpoint, now {_at(new, key)}" for key in changed]


def _differs(key: str, old: dict[str, str], new: dict[str, str]) -> bool:
    """Whether both have the key, with different values; a key in only one of them is from another version."""
    return None not in (_at(old, key), _at(new, key)) and _at(old, key) != _at(new, key)


def _at(flat: dict[str, str], key: str) -> str | None:
    """Value of a key, or of the section above it if that is null; "set" for a section that is not null."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (section := ".".join(parts[:end])) in flat:
            return flat[section]
    return "set" if any(each.startswith(f"{key}.") for each in flat) else None


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with values as text."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: json.dumps(tree) if isinstance(tree, list | dict) else str(tree)}
    parts = (flatten(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}
