"""What a YAML may say: one dataclass a section, a sentence under each field, and how files and overrides merge.

Only omegaconf is imported here, so that `--help` and a wrong key answer at once.
"""

import ast
import difflib
import inspect
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError


@dataclass
class ModelConfig:
    size: Literal["tiny", "base", "0.6b", "1.2b"] = "tiny"
    """Encoder and decoder widths and depths (src/models/sizes.py)."""
    init_from: str | None = None
    """Checkpoint, export or release name whose weights training starts from; null starts from random weights."""
    drop_path: float = 0.0
    """Share of residual branches dropped in the last encoder block, rising linearly from 0 in the first; 0 to 1."""
    layer_scale: float | None = None
    """Initial value of LayerScale in the encoder blocks; null leaves LayerScale out."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more time."""


@dataclass
class ObjectiveConfig:
    mask_ratio: float = 0.75
    """Share of each clip's tokens that the encoder does not see; above 0, below 1."""
    mask_group: int = 2
    """Neighbouring tokens that are masked together."""


@dataclass
class OptimizerConfig:
    learning_rate: float = 3e-4
    """Peak learning rate for 256 clips a step; scaled in proportion to the effective batch."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; norms, biases, positions and the mask token have none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's decay rates of the two moments."""
    warmup_steps: int = 0
    """Optimiser steps from 0 to the peak learning rate."""
    final_share: float = 0.1
    """The cosine ends at this share of the peak."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; null does not clip."""


@dataclass
class SourceConfig:
    kind: Literal["huggingface", "folder", "shards"] = "folder"
    """A Hugging Face dataset, a folder of audio files, or WebDataset-style tar shards."""
    path: str = "???"
    """Hub id or local dataset; folder; or a shard file, glob or brace pattern."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    config_name: str | None = None
    """Configuration of a Hugging Face dataset that has several."""
    audio_column: str = "audio"
    """Column of a Hugging Face dataset that holds the audio."""
    label_column: str | None = None
    """Column of a Hugging Face dataset that holds the class; null reads no labels."""
    streaming: bool = False
    """Read a Hugging Face dataset in its own order, without downloading it first."""
    weight: float = 1.0
    """Share of the clips drawn from this source, relative to the other sources."""


@dataclass
class DataConfig:
    path: str | None = None
    """Where the audio lies, for fragments that say `${data.path}` (configs/data)."""
    sources: list[SourceConfig] = field(default_factory=list)
    """What is trained on; several are mixed by their weights."""
    validation: SourceConfig | None = None
    """Held-out audio for the validation loss; null skips validation."""
    test: SourceConfig | None = None
    """Audio for `test` and `predict`."""
    crop_seconds: float = 10.0
    """Longest piece of a clip in a batch; 0.05 to 10.08. A longer clip gives several crops an epoch."""
    pad_to_crop: bool = False
    """Pad every clip with zeros to crop_seconds and treat them as sound, as the paper does."""
    batch_size: int | None = None
    """Clips a batch and process; set this or batch_seconds."""
    batch_seconds: float | None = None
    """Seconds of padded audio a batch and process; set this or batch_size."""
    window_clips: int = 4096
    """Crops that are shuffled and sorted into length buckets together."""
    gain_db: float | None = None
    """Each crop is made louder or softer by up to this many dB; null leaves the level alone."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    cache_gigabytes: float = 4.0
    """A set that fits is decoded once into a 16-bit cache of at most this size; 0 turns the cache off."""
    max_bad_share: float = 0.1
    """Largest share of unreadable clips before the run stops; 0 to 1."""


@dataclass
class TrainerConfig:
    steps: int = 1000
    """Optimiser steps."""
    accumulate: int = 1
    """Batches a process puts into one optimiser step."""
    devices: int = 1
    """Processes (GPUs, or CPU processes) a node."""
    num_nodes: int = 1
    """Nodes."""
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    """Hardware."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16-mixed where the GPU computes in it, else 32-true."""
    threads: int | None = None
    """CPU threads a process; null leaves torch's choice."""
    log_every_steps: int = 10
    """Steps between two rows of metrics.csv."""
    save_every_steps: int = 500
    """Steps between two saves of checkpoints/last.ckpt."""
    save_best: int = 2
    """Checkpoints kept for their validation loss, beside the last."""


@dataclass
class CheckConfig:
    every_steps: int = 500
    """Steps between two checks (validation loss, probes, picture); the last step is always checked."""
    train: SourceConfig | None = None
    """Labelled clips the probes learn from; null leaves the probes out."""
    test: SourceConfig | None = None
    """Labelled clips the probes are scored on."""
    layer: int | None = None
    """Block whose output is read (1 is the first, 0 the patch embedding); null reads the encoder's normed output."""
    pooling: Literal["mean", "max", "mean_std", "mean_max"] = "mean"
    """How the tokens of a clip become one embedding."""
    max_clips: int = 2000
    """Clips of each labelled split that are used."""


@dataclass
class TrackingConfig:
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases: offline needs no account; null is off. metrics.csv is always written."""
    project: str = "audio-encoder"
    """Project in Weights & Biases."""


@dataclass
class Config:
    name: str = "pretrain"
    """The run's folder under runs_folder."""
    runs_folder: str = "runs"
    """Where runs are written."""
    seed: int = 0
    """Fixes initial weights, order of clips, crops and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def load_config(files: list[str], overrides: list[str]) -> Config:
    """Merge YAML files from left to right, then `key=value` overrides, then resolve `${...}`.

    Raises:
        UserError: a file that is not there or is not YAML, an unknown key, a value of the wrong type or range.
    """
    config = merge(files, overrides)
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


def merge(files: list[str], overrides: list[str]) -> DictConfig:
    """The same before `${...}` is resolved."""
    config = OmegaConf.structured(Config)
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"--config {file}: no such file (looked in {Path.cwd()})")
        try:
            config = OmegaConf.merge(config, OmegaConf.load(file))
        except OmegaConfBaseException as error:
            raise UserError(f"{file}: {_explain(error)}") from None
        except Exception as error:  # the YAML parser's errors have no common base with omegaconf's
            raise UserError(f"{file} is not a YAML of settings: {_one_line(error)}") from None
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override; write key=value, for example trainer.steps=100")
        _override(config, key, value)
    return config


def _override(config: DictConfig, key: str, value: str) -> None:
    if value == "???":  # omegaconf's mark of a value that has to be given
        raise UserError(f"{key} is not set; give it a value, {key}=VALUE")
    try:
        parsed = OmegaConf.from_dotlist([f"value={value}"]).value
        parent, _, leaf = key.rpartition(".")
        if parent and OmegaConf.select(config, parent) is None and _is_section(parent):
            OmegaConf.update(config, parent, {leaf: parsed})
        else:
            OmegaConf.update(config, key, parsed)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error, key)) from None
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{key}={value}: {_one_line(error)}") from None


def _explain(error: OmegaConfBaseException, key: str | None = None) -> str:
    full_key = str(error.full_key or key or "")
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
    "trainer": TrainerConfig, "check": CheckConfig, "tracking": TrackingConfig, "data.sources.N": SourceConfig,
}  # fmt: skip


def _is_section(key: str) -> bool:
    return key in {"data.validation", "data.test", "check.train", "check.test"}


def describe_keys() -> dict[str, str]:
    """Every key of a YAML and the sentence under its field; the keys of a source stand once, as data.sources.N."""
    described: dict[str, str] = {}
    for section, cls in SECTIONS.items():
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name = statement.target.id  # type: ignore[union-attr]
                described[f"{section}.{name}".lstrip(".")] = ast.literal_eval(following.value)
    return described


def check_values(config: Config) -> None:
    """Ranges and contradictions that types can't say.

    Raises:
        UserError: with key, value and what is allowed.
    """
    data, objective, optimizer, trainer = config.data, config.objective, config.optimizer, config.trainer
    _between("objective.mask_ratio", objective.mask_ratio, 0.01, 0.99)
    _between("objective.mask_group", objective.mask_group, 1, 126)
    _between("model.drop_path", config.model.drop_path, 0.0, 0.99)
    _between("data.max_bad_share", data.max_bad_share, 0.0, 1.0)
    _between("data.cache_gigabytes", data.cache_gigabytes, 0.0, float("inf"))
    _between("data.num_workers", data.num_workers, 0, 1024)
    _between("data.window_clips", data.window_clips, 1, 2**31)
    _between("optimizer.learning_rate", optimizer.learning_rate, 0.0, 10.0)
    _between("optimizer.warmup_steps", optimizer.warmup_steps, 0, 2**62)
    _between("optimizer.final_share", optimizer.final_share, 0.0, 1.0)
    for key in ("steps", "accumulate", "devices", "num_nodes", "log_every_steps", "save_every_steps"):
        _between(f"trainer.{key}", getattr(trainer, key), 1, 2**62)
    _between("check.every_steps", config.check.every_steps, 1, 2**62)
    if len(optimizer.betas) != 2:
        raise UserError(f"optimizer.betas={optimizer.betas} has {len(optimizer.betas)} numbers; AdamW takes two")
    if data.crop_seconds > 10.08:
        raise UserError(
            f"data.crop_seconds={data.crop_seconds} is longer than the encoder's 10.08 s; set it to 10.08 or less"
        )
    _between("data.crop_seconds", data.crop_seconds, 0.05, 10.08)
    if (data.batch_size is None) == (data.batch_seconds is None):
        found = "neither is set" if data.batch_size is None else "both are set"
        raise UserError(f"set data.batch_size (clips) or data.batch_seconds (seconds), one of them: {found}")
    _between("data.batch_size", data.batch_size or 1, 1, 2**31)
    if not data.sources:
        raise UserError(
            "data.sources is empty; add a data fragment, for example --config configs/data/folder.yaml data.path=FOLDER"
        )


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; it goes from {low} to {high}")


def to_yaml(config: Config) -> str:
    """The resolved settings, as written into the run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
