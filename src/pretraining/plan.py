"""The plan of a run before it starts: model and data size, steps, memory, FLOPs, and warnings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from src.config.settings import Config, TrainerConfig
from src.data.pretraining.datamodule import DataSummary
from src.errors import UserError
from src.models.cost import blocks_flops, count_parameters, forward_flops, memory_bytes
from src.models.mae import MaskedAutoencoder
from src.share import cores
from src.training.distributed.parallel import num_shards
from src.training.optimizer import scaled_learning_rate

_TYPICAL_MFU = 0.35  # share of the device's peak that a training step reaches


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        rows: (name, value) as printed.
        warnings: one sentence each.
        steps: optimizer steps of the run.
        validate_every: batches between validations; None validates at the end only.
        limit_train_batches: batches per epoch if a setting limits them, else None.
        recompute: whether activations are recomputed in the backward pass.
        keep_gathered: fsdp: whether memory allows whole weights between forward and backward pass (`shard`).
    """

    rows: list[tuple[str, str]]
    warnings: list[str]
    steps: int
    validate_every: int | None
    limit_train_batches: int | None
    recompute: bool
    keep_gathered: bool

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{name:<{width}}  {value}" for name, value in self.rows]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def make_plan(
    config: Config,
    model: MaskedAutoencoder,
    data: DataSummary,
    bf16: bool,
    memory_limit: float = math.inf,
    worker_rate: float | None = None,
    peak_flops: float | None = None,
) -> Plan:
    """Compute the plan; `model` may be on the meta device.

    Args:
        memory_limit: bytes that a process may use.
        worker_rate: crops that one worker decodes per second; None if unknown.
        peak_flops: FLOP/s of the device of one process; None if unknown.

    Raises:
        UserError: a setting refers to epochs, but the data are a stream of unknown length.
    """
    world_size = int(config.trainer.devices) * config.trainer.num_nodes
    accumulated = config.trainer.accumulate_grad_batches
    clips_per_step = data.clips_per_batch * world_size * accumulated
    batches = _batches_per_epoch(config.trainer, data, world_size)
    steps = num_steps(config.trainer, batches)
    encoder_size, decoder_size = count_parameters(model.encoder), count_parameters(model.decoder)
    tokens = model.encoder.num_tokens(round(data.crop_seconds * model.encoder.sample_rate))
    kept = max(1, int(tokens * (1 - model.mask_ratio) + 1e-9))
    flops = 3 * forward_flops(model, tokens, kept) * clips_per_step
    needed = partial(memory_bytes, model, tokens, kept, data.clips_per_batch, bf16)
    whole = (encoder_size + decoder_size) * ((2 if bf16 else 4) + 4 * (accumulated > 1))
    memory, recompute, keep_gathered = _fit_memory(config, needed, whole, memory_limit)
    if recompute:
        flops += blocks_flops(model.encoder, kept) * clips_per_step
    hours = steps * clips_per_step * (data.heard_seconds or data.crop_seconds) / 3600
    rate = scaled_learning_rate(config.optimizer.lr, clips_per_step)
    batch = f"{data.clips_per_batch:.0f} per process x {world_size} x {accumulated} accumulated"
    state = _describe_state(num_shards(config.trainer), keep_gathered, recompute)
    peak = f"{rate:.3g} at the peak ({config.optimizer.lr:.3g} for 256 clips)"
    rows = [
        ("model", f"{config.model.size}: encoder {_millions(encoder_size)}, decoder {_millions(decoder_size)}"),
        ("tokens per clip", f"{tokens} in {data.crop_seconds:.2f} s (mean), {kept} seen by the encoder"),
        ("data", _describe_data(data)),
        ("decoded cache", f"{data.cache_bytes / 2**20:,.0f} MiB" if data.cache_bytes else "off"),
        ("effective batch", f"{clips_per_step:.0f} clips ({batch})"),
        ("steps", _describe_steps(steps, clips_per_step, data)),
        ("audio in the run", f"{hours:,.1f} hours, with repeats"),
        ("learning rate", f"{peak}, {config.optimizer.warmup_steps} steps of warm-up, then a cosine"),
        ("memory per process", f"about {memory / 2**30:.1f} GiB ({state})"),
        ("compute per step", f"{flops / 1e9:,.0f} GFLOP"),
    ]
    warnings = _warnings(config, encoder_size, data, world_size, steps)
    if worker_rate is not None:
        needed_rate = peak_flops and _TYPICAL_MFU * peak_flops / (flops / clips_per_step)
        row, warning = _describe_loading(config, worker_rate, needed_rate)
        rows.append(("loading", row))
        warnings += [warning] if warning else []
    limited = config.trainer.limit_train_batches is not None or config.trainer.overfit_batches
    interval = validation_interval(config.trainer, batches)
    return Plan(rows, warnings, steps, interval, batches if limited else None, recompute, keep_gathered)


def _fit_memory(
    config: Config, needed: Callable[..., float], whole: float, memory_limit: float
) -> tuple[float, bool, bool]:
    """Bytes of a process, whether activations are recomputed, whether weights stay gathered between the passes.

    Args:
        needed: bytes by `recompute` and `num_shards`. whole: bytes of weights and sums that are not sharded.
    """
    shards, recompute = num_shards(config.trainer), config.model.gradient_checkpointing
    if recompute is None:
        recompute = needed(False, num_shards=shards) > memory_limit
    memory = needed(recompute, num_shards=shards)
    keep_gathered = config.trainer.strategy == "fsdp" and memory + whole <= memory_limit
    return memory + (whole if keep_gathered and shards > 1 else 0), recompute, keep_gathered


def _batches_per_epoch(settings: TrainerConfig, data: DataSummary, world_size: int) -> int | None:
    """Batches per process and epoch, with the limits applied; None for a stream, whose length is unknown."""
    batches = None if data.crops is None else math.ceil(data.crops / (data.clips_per_batch * world_size))
    for limit in (settings.limit_train_batches, settings.overfit_batches or None):
        if isinstance(limit, int) and not isinstance(limit, bool):
            batches = limit if batches is None else min(batches, limit)
        elif limit is not None and batches is None:
            raise UserError(
                f"the limit of {limit} is a fraction of an epoch, but the length of a stream is unknown; set a number "
                "of batches"
            )
        elif limit is not None and batches is not None:
            batches = max(1, int(batches * limit))
    return batches


def num_steps(settings: TrainerConfig, batches: int | None) -> int:
    """Optimizer steps of the run; `batches` per epoch.

    Raises:
        UserError: max_epochs is set for a stream, whose length is unknown.
    """
    if settings.fast_dev_run:
        return int(settings.fast_dev_run)
    if settings.max_epochs is None:
        return settings.max_steps
    if batches is None:
        raise UserError(
            f"trainer.max_epochs={settings.max_epochs}, but the length of a stream is unknown; set trainer.max_steps"
        )
    steps = math.ceil(settings.max_epochs * batches / settings.accumulate_grad_batches)
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def validation_interval(settings: TrainerConfig, batches: int | None) -> int | None:
    """Batches between validations; None validates at the end only. `batches` per epoch.

    Raises:
        UserError: the interval is a fraction of an epoch, but the data are a stream of unknown length.
    """
    interval = settings.val_check_interval
    if interval is None:
        return batches
    if isinstance(interval, int):
        return max(1, interval)
    if batches is None:
        raise UserError(
            f"trainer.val_check_interval={interval} is a fraction of an epoch, but the length of a stream is "
            "unknown; set it to a number of batches"
        )
    return max(1, int(batches * interval))


def _describe_loading(config: Config, worker_rate: float, needed: float | None) -> tuple[str, str | None]:
    """What the workers of a process give beside what its step needs, both in crops per second; and a warning."""
    workers, available = max(1, config.data.num_workers), max(1, cores() // int(config.trainer.devices))
    rate = worker_rate * min(workers, available)
    given = f"{workers} {'worker gives' if workers == 1 else 'workers give'} about {rate:,.0f}"
    on = f" on {available} cores" if workers > available else ""
    if needed is None:
        return f"{given} crops/s per process{on}; what the step needs is not known on this device", None
    row = f"{given} crops/s per process{on}; the step needs about {needed:,.0f} at {_TYPICAL_MFU:.0%} of the peak"
    if rate >= needed:
        return row, None
    enough = math.ceil(needed / worker_rate)
    advice = "pack the audio once, as 16 kHz flac (python -m src.pack ... --audio flac)"
    advice += f", or set data.num_workers={enough}" if workers < enough <= available else ""
    return row, f"the step needs about {needed:,.0f} crops/s, {given}{on}: {advice}"


def _describe_state(shards: int, keep_gathered: bool, recompute: bool) -> str:
    state = "weights, gradients, AdamW"
    if shards > 1:
        whole = "whole weights" if keep_gathered else "two whole blocks at a time"
        state = f"one of {shards} shards of {state}; {whole}"
    return f"{state}, activations{', recomputed in the backward pass' if recompute else ''}"


def _describe_data(data: DataSummary) -> str:
    if data.num_clips is None or data.seconds is None:
        return "a stream, shuffled in windows"
    text = f"{data.num_clips:,} clips, {_duration(data.seconds)}"
    text += f"; {data.bad} unreadable, skipped" if data.bad else ""
    return text + (f", {data.missing_shards} of them whole shards (skipped.csv)" if data.missing_shards else "")


def _describe_steps(steps: int, clips_per_step: float, data: DataSummary) -> str:
    if not data.crops:
        return f"{steps:,}"
    return f"{steps:,} = {steps * clips_per_step / data.crops:,.1f} epochs of {data.crops / clips_per_step:,.0f} steps"


def _warnings(config: Config, encoder_size: int, data: DataSummary, world_size: int, steps: int) -> list[str]:
    warnings = []
    if data.seconds is not None and data.seconds / encoder_size < 1e-4:  # 85 M parameters: under 2.4 hours
        warnings.append(
            f"{_millions(encoder_size)} parameters on {_duration(data.seconds)} of audio will overfit; "
            "use a smaller model.size or more audio"
        )
    workers = config.data.num_workers * world_size
    if data.shards is not None and data.shards < workers:
        warnings.append(
            f"{data.shards} shards for {workers} workers: some will read the same shard; make more, smaller shards"
        )
    if config.optimizer.warmup_steps >= steps:
        warnings.append(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is not less than the run's {steps} steps: "
            "the learning rate never reaches its peak"
        )
    if data.overlap:
        warnings.append(
            f"{data.overlap} validation clips are also in train: the validation loss will be too optimistic"
        )
    return warnings


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"
