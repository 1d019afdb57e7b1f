"""Settings that differ from those of the checkpoint a run resumes: applied, or refused; never ignored."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from src.config.settings import Config
from src.errors import UserError

# What the checkpoint's weights, position or floors were made with. Another value would be ignored, so it is refused.
FIXED = (
    "seed", "model.size", "model.init_from", "model.layer_scale", "check.train", "check.test", "check.layer",
    "check.pooling", "check.max_clips", "classify.method", "classify.level", "classify.task", "classify.layer",
    "classify.pooling", "classify.lora_rank", "classify.test_fold", "classify.folds",
)  # fmt: skip
# Where the run lies and what it is called: no setting of the training.
NOT_COMPARED = ("name", "runs_folder")


def compare_settings(config: Config, before: dict[str, Any], checkpoint: Path) -> list[str]:
    """The settings that changed and are applied, a line each.

    Args:
        before: the checkpoint's settings, nested.

    Raises:
        UserError: a setting changed that a checkpoint fixes; a classifier resumes a pretraining run, or the reverse.
    """
    now = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(now, dict)
    if (before.get("classify") is None) != (config.classify is None):
        kinds = ("pretraining", "classification") if config.classify else ("classification", "pretraining")
        raise UserError(f"{checkpoint} is a checkpoint of {kinds[0]}, the settings are of {kinds[1]}; start a new run")
    old, new = flatten(before), flatten(now)
    changed = [key for key in {**new, **old} if _differs(key, old, new) and key not in NOT_COMPARED]
    for key in changed:
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(
                f"{checkpoint} was trained with {key}={_at(old, key)}, the settings say {key}={_at(new, key)}; "
                f"set it back, or start a new run"
            )
    return [f"{key}: {_at(old, key)} in the checkpoint, now {_at(new, key)}" for key in changed]


def _differs(key: str, old: dict[str, str], new: dict[str, str]) -> bool:
    """Whether both know the key, and it changed; a key that one of them does not know is of another version."""
    return None not in (_at(old, key), _at(new, key)) and _at(old, key) != _at(new, key)


def _at(flat: dict[str, str], key: str) -> str | None:
    """The value of a key, or of the section above it that is off; for a section that is on, that it is."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (section := ".".join(parts[:end])) in flat:
            return flat[section]
    return "set" if any(each.startswith(f"{key}.") for each in flat) else None


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and their values as text."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: json.dumps(tree) if isinstance(tree, list | dict) else str(tree)}
    parts = (flatten(value, f"{prefix}.{key}".lstrip(".")) for key, value in tree.items())
    return {key: value for part in parts for key, value in part.items()}
