"""Validation of settings beyond their types: ranges, contradictions, settings without effect."""

import math
import re
from dataclasses import MISSING, fields
from typing import Any

from src.config.settings import Config
from src.errors import UserError

_MANY = 2**62
RANGES = {  # key: minimum and maximum; null is always allowed
    "model.drop_path": (0.0, 0.99),
    "model.layer_scale": (0.0, 10.0),
    "objective.mask_ratio": (0.01, 0.99),
    "objective.mask_group": (1, 126),
    "optimizer.lr": (0.0, 10.0),
    "optimizer.weight_decay": (0.0, 1e6),
    "optimizer.warmup_steps": (0, _MANY),
    "optimizer.final_share": (0.0, 1.0),
    "data.crop_seconds": (0.05, 10.08),
    "data.batch_size": (1, 2**31),
    "data.batch_seconds": (0.05, 1e9),
    "data.window_clips": (1, 2**31),
    "data.gain_db": (0.0, 100.0),
    "data.num_workers": (0, 1024),
    "data.prefetch_factor": (1, 1024),
    "data.cache_gigabytes": (0.0, math.inf),
    "data.max_bad_share": (0.0, 1.0),
    "trainer.max_epochs": (1, 10**9),
    "trainer.accumulate_grad_batches": (1, _MANY),
    "trainer.gradient_clip_val": (0.0, math.inf),
    "trainer.log_every_n_steps": (1, _MANY),
    "trainer.val_check_interval": (0.0, _MANY),
    "trainer.check_val_every_n_epoch": (1, _MANY),
    "trainer.limit_train_batches": (0.0, _MANY),
    "trainer.limit_val_batches": (0.0, _MANY),
    "trainer.fast_dev_run": (0, _MANY),
    "trainer.overfit_batches": (0.0, _MANY),
    "trainer.num_nodes": (1, 2**20),
    "trainer.threads": (1, 4096),
    "trainer.skip_bad_steps": (0, 2**31),
    "checkpoint.every_n_train_steps": (1, _MANY),
    "checkpoint.save_top_k": (-1, 2**31),
    "check.max_clips": (2, 2**31),
    "classify.layer_decay": (0.01, 1.0),
    "classify.label_smoothing": (0.0, 0.99),
    "classify.lora_rank": (1, 10**4),
    "classify.folds": (3, 10**4),
    "classify.augment.gain_db": (0.0, 100.0),
    "classify.augment.shift_seconds": (0.0, 1000.0),
    "classify.augment.noise_db": (-100.0, 200.0),
    "classify.augment.mixup": (0.0, 1000.0),
    "classify.augment.mask_bands": (0, 1000),
    "classify.augment.mask_frames": (0, 1000),
}
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")

# Settings that have no effect in a kind of run. They must keep their defaults. Keys of a source, except weight, are
# always allowed, since they describe the audio.
NOT_FOR_PRETRAINING = ("trainer.check_val_every_n_epoch",)
NOT_FOR_CLASSIFICATION = (
    "model.dct_patches", "optimizer.name", "objective.mask_ratio", "objective.mask_group",
    "check.train", "check.test", "check.layer", "check.pooling",
    "check.max_clips", "data.pad_to_crop", "data.window_clips", "data.resample", "data.gain_db", "trainer.compile",
    "trainer.skip_bad_steps",
)  # fmt: skip
NOT_FOR_LINEAR = (
    "model.drop_path", "model.gradient_checkpointing", "classify.layer_decay", "classify.lora_rank",
    "classify.augment.gain_db", "classify.augment.shift_seconds", "classify.augment.noise_db", "classify.augment.mixup",
    "classify.augment.mask_bands", "classify.augment.mask_frames",
)  # fmt: skip


def check_values(config: Config) -> None:
    """Validate ranges and combinations of settings.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    if not config.data.sources:
        raise UserError(
            "data.sources is empty; add a data fragment, for example --config configs/data/folder.yaml data.path=FOLDER"
        )
    for key, (low, high) in RANGES.items():
        _check_range(key, value_of(config, key), low, high)
    _check_batches(config)
    _check_length(config)
    _check_trainer(config)
    _check_kind(config)


def value_of(config: Any, key: str) -> Any:
    """Value of a dotted key; None if its section is null."""
    for name in key.split("."):
        config = None if config is None else getattr(config, name)
    return config


def _check_range(key: str, value: float | None, low: float, high: float) -> None:
    if value is None or low <= value <= high:
        return
    if key == "data.crop_seconds" and value > high:
        raise UserError(f"{key}={value} is longer than the encoder's 10.08 s; set it to 10.08 or less")
    raise UserError(f"{key}={value} is out of range; set it between {low} and {high}")


def _check_batches(config: Config) -> None:
    data = config.data
    if (data.batch_size is None) == (data.batch_seconds is None):
        state = "neither is set" if data.batch_size is None else "both are set"
        raise UserError(f"set either data.batch_size (clips) or data.batch_seconds (seconds); {state}")
    if data.prefetch_factor is not None and not data.num_workers:
        raise UserError("data.prefetch_factor needs workers; set data.num_workers to 1 or more")


def _check_length(config: Config) -> None:
    trainer = config.trainer
    if trainer.max_steps == 0 or trainer.max_steps < -1:
        raise UserError(f"trainer.max_steps={trainer.max_steps} is out of range; set 1 or more, or -1 for no limit")
    if trainer.max_steps == -1 and trainer.max_epochs is None and not trainer.fast_dev_run:
        raise UserError("the length of the run is not set; set trainer.max_steps or trainer.max_epochs")
    for key in ("trainer.max_time", "checkpoint.train_time_interval"):
        value = value_of(config, key)
        if value is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value):
            raise UserError(f"{key}={value} is not a time; write DD:HH:MM:SS, for example 00:08:00:00 for 8 hours")


def _check_trainer(config: Config) -> None:
    trainer = config.trainer
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision={trainer.precision} is not supported; use {', '.join(PRECISIONS)} (weights stay fp32)"
        )
    if trainer.precision == "16-mixed" and trainer.skip_bad_steps is not None and config.classify is None:
        raise UserError(
            "trainer.precision=16-mixed already skips steps whose gradients overflow; set trainer.skip_bad_steps=null "
            "or trainer.precision=bf16-mixed"
        )
    if (isinstance(trainer.devices, str) and trainer.devices != "auto") or trainer.devices in (0, False):
        raise UserError(f"trainer.devices={trainer.devices} is not valid; set a number of processes or auto")
    if isinstance(trainer.devices, int) and trainer.devices < -1:
        raise UserError(f"trainer.devices={trainer.devices} is out of range; set 1 or more, or -1 for auto")
    if isinstance(trainer.deterministic, str) and trainer.deterministic != "warn":
        raise UserError(f"trainer.deterministic={trainer.deterministic} is not valid; set true, false or warn")
    if len(config.optimizer.betas) != 2:
        betas = config.optimizer.betas
        raise UserError(f"optimizer.betas={betas} has {len(betas)} values; set two")


def _check_kind(config: Config) -> None:
    """Refuse settings that have no effect in this kind of run."""
    classify = config.classify
    if classify is None:
        _refuse_changes(config, NOT_FOR_PRETRAINING, "pretraining")
        return
    if config.trainer.strategy == "fsdp":
        raise UserError("trainer.strategy=fsdp is for pretraining only; set auto or ddp for a classifier")
    _refuse_changes(config, NOT_FOR_CLASSIFICATION, "a classifier")
    if any(source.weight != 1.0 for source in config.data.sources):
        raise UserError("data.sources.N.weight has no effect in a classifier; remove it")
    if classify.lora_rank and classify.method == "linear":
        raise UserError(
            "classify.lora_rank is set, but classify.method=linear does not train the encoder; set it to finetune"
        )
    if classify.method == "linear":
        _refuse_changes(config, NOT_FOR_LINEAR, "a classifier with classify.method=linear")
    if config.model.init_from is not None:
        _refuse_changes(
            config, ("model.size", "model.layer_scale"), "a classifier that starts from model.init_from, which sets it"
        )


def _refuse_changes(config: Config, keys: tuple[str, ...], kind: str) -> None:
    for key in keys:
        value = value_of(config, key)
        if value != _default(config, key):
            raise UserError(f"{key}={value} has no effect in {kind}; remove it")


def _default(config: Config, key: str) -> Any:
    section, _, name = key.rpartition(".")
    field = next(each for each in fields(value_of(config, section)) if each.name == name)
    return None if field.default is MISSING else field.default  # lists are empty
