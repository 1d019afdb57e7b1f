"""Load settings from YAML files and overrides, explain mistakes in them, and write settings as YAML."""

import ast
import difflib
import inspect
import itertools
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config.checks import check_values
from src.config.renamed import refusal
from src.config.settings import (
    AugmentConfig,
    CallbackConfig,
    CheckConfig,
    CheckpointConfig,
    ClassifyConfig,
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SourceConfig,
    TrackingConfig,
    TrainerConfig,
)
from src.config.typed_yaml import allows_null, hint_of, is_text, literal, literals, read_yaml
from src.errors import UserError


def load_config(files: list[str], overrides: list[str]) -> Config:
    """Merge YAML files from left to right, then `key=value` overrides, then resolve `${...}`.

    Raises:
        UserError: a file is missing or not YAML; a key is unknown; a value has the wrong type or is out of range.
    """
    config = merge(files, overrides)
    for unset in _keys_inside_text(OmegaConf.to_container(config)):
        if OmegaConf.select(config, unset) is None:  # would be inserted as "None"
            raise UserError(f"{unset} is not set; add {unset}=VALUE to the command")
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        referred = re.search(r"\$\{([\w.]+)\}.*Incompatible value 'None'", str(error), re.DOTALL)
        if referred or "Missing mandatory" in str(error):
            key = referred.group(1) if referred else error.full_key
            raise UserError(f"{key} is not set; add {key}=VALUE to the command") from None
        raise UserError(_one_line(error)) from None
    assert isinstance(result, Config)
    check_values(result)
    return result


def _keys_inside_text(values: Any) -> list[str]:
    """Keys of `${...}` inside longer strings."""
    if isinstance(values, dict | list):
        inner = values.values() if isinstance(values, dict) else values
        return [key for value in inner for key in _keys_inside_text(value)]
    if not isinstance(values, str) or re.fullmatch(r"\$\{[\w.]+\}", values):
        return []
    return re.findall(r"(?<!\\)\$\{([\w.]+)\}", values)


def merge(files: list[str], overrides: list[str]) -> DictConfig:
    """As `load_config`, but without resolving `${...}` and without validation."""
    config = OmegaConf.structured(Config)
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"--config {file}: no such file (looked in {Path.cwd()})")
        try:
            values = read_yaml(Path(file).read_text(encoding="utf-8-sig"), Config)
            if not isinstance(values, dict | None):
                raise UserError(f"{file} is not a YAML file of settings: it has no keys")
            config = OmegaConf.merge(config, values or {})
        except OmegaConfBaseException as error:
            raise UserError(f"{file}: {_explain(error)}") from None
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{file} is not a YAML file of settings: {_one_line(error)}") from None
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override; write key=value, for example trainer.max_steps=100")
        _override(config, key, value)
    return config


def _override(config: DictConfig, key: str, value: str) -> None:
    if value == "???":  # omegaconf's marker of a mandatory value
        raise UserError(f"{key} is not set; add {key}=VALUE to the command")
    try:
        parsed = _value(value, hint_of(key, Config))
        parent, _, leaf = key.rpartition(".")
        if parent and OmegaConf.select(config, parent) is None and _is_section(parent):
            OmegaConf.update(config, parent, {leaf: parsed})
        else:
            OmegaConf.update(config, key, parsed)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, key)) from None
    except (TypeError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise UserError(f"{key}={value}: {_one_line(error)}") from None


def _value(value: str, hint: Any) -> Any:
    """The value of an override: for text fields as typed, except for `${KEY}` of a setting; else YAML."""
    if is_text(hint):
        text = literal(value, lambda key: hint_of(key, Config) is not None)
        return None if value == "null" and allows_null(hint) else text
    return read_yaml(value, hint) if value.strip() else value


def _explain(error: OmegaConfBaseException, key: str | None = None) -> str:
    full_key = str(error.full_key or key or "")
    if reason := refusal(full_key):
        return reason
    if "not in" in str(error) and full_key:
        return f"there is no setting {full_key}{_nearest(full_key)}"
    return _one_line(error)


def _nearest(key: str) -> str:
    leaf = key.rpartition(".")[2]
    keys = list(describe_keys())
    leaves = {k.rpartition(".")[2]: k for k in reversed(keys)}
    close = difflib.get_close_matches(key, keys, 1, 0.75) or [
        leaves[name] for name in difflib.get_close_matches(leaf, leaves, 1, 0.6)
    ]
    return f"; did you mean {close[0]}?" if close else "; `python -m src.train --help` lists them"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return key + " ".join(line for line in lines if not line.startswith(("full_key", "object_type", "reference_type")))


SECTIONS = {
    "": Config, "model": ModelConfig, "objective": ObjectiveConfig, "data": DataConfig, "optimizer": OptimizerConfig,
    "trainer": TrainerConfig, "checkpoint": CheckpointConfig, "check": CheckConfig, "tracking": TrackingConfig,
    "data.sources.N": SourceConfig, "classify": ClassifyConfig, "classify.augment": AugmentConfig,
    "callbacks.N": CallbackConfig,
}  # fmt: skip


def _is_section(key: str) -> bool:
    return key in {"data.validation", "data.test", "check.train", "check.test", "classify"}


def describe_keys() -> dict[str, str]:
    """Every key and the text under its field; keys of a source are listed once, as data.sources.N."""
    described: dict[str, str] = {}
    for section, cls in SECTIONS.items():
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name = statement.target.id  # type: ignore[union-attr]
                described[f"{section}.{name}".lstrip(".")] = " ".join(ast.literal_eval(following.value).split())
    return described


def to_yaml(config: Config) -> str:
    """The resolved settings as YAML, as written to the run folder."""
    return OmegaConf.to_yaml(OmegaConf.create(literals(asdict(config))))
