"""Pretraining commands: build data, plan, network and callbacks from the settings. `src.training.run` trains."""

import logging
import shlex
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch

from src.config.settings import Config
from src.data.labelled.probe_clips import ProbeClips, load_probe_clips
from src.data.pretraining.datamodule import PretrainDataModule
from src.encoders.lightning import is_sharded, read_training
from src.errors import UserError
from src.evaluation.embeddings import parse_layer
from src.models.cost import training_flops
from src.models.mae import MaskedAutoencoder
from src.models.sizes import create_mae
from src.pretraining.learning_check import LearningCheck
from src.pretraining.module import MAEPretraining
from src.pretraining.plan import Plan, make_plan
from src.pretraining.reconstruction import Reconstruction
from src.pretraining.start import start_from
from src.pretraining.summary import summary_table
from src.training.callbacks.bad_clips import BadClips
from src.training.callbacks.bad_steps import SkipBadSteps
from src.training.callbacks.checkpoints import Checkpoints
from src.training.callbacks.step_figures import StepFigures, peak_flops
from src.training.distributed.parallel import compile_blocks, make_strategy, num_shards, shard
from src.training.run import Run
from src.training.run_folder import checkpoint_of, read_run
from src.training.trainer import compiled, find_device, make_trainer, memory_limit, precision
from src.verbosity import RESULT

log = logging.getLogger("src")
_DEV_RUN_CLIPS = 64  # clips per probe split in a fast_dev_run


def fit(config: Config, resume: str | None = None) -> int:
    """Train; returns the exit status."""
    with Run(config, resume) as run:
        return train(config, run)


def train(config: Config, run: Run) -> int:
    """Build everything from the settings and train, with checks and pictures; returns the exit status."""
    data = prepare_data(config)
    plan = plan_run(config, data)
    init_from = config.model.init_from if run.checkpoint is None else None
    module = make_module(config, init_from, plan)
    started = start_from(module.model, init_from) if init_from and config.trainer.strategy != "fsdp" else None
    layer = parse_layer(config.check.layer, module.model.encoder.depth, "check.layer")
    probes = load_probes(config)
    run.start(str(plan))
    if started:
        log.info("%s", started)
    check = None
    if probes:
        every, pooling = plan.validate_every, config.check.pooling
        check = LearningCheck(*probes, every, layer, pooling, pretrained=config.model.init_from is not None)
    pictures = Reconstruction(run.folder / "pictures", plan.validate_every, examples(data, probes))
    figures = StepFigures(len(config.data.sources), partial(training_flops, module.model))

    def close(trainer: L.Trainer, checkpoints: Checkpoints) -> None:
        if trainer.is_global_zero:
            log.log(RESULT, "\n%s", summary_table(trainer, figures, check, pictures, checkpoints.last, run.folder))
            folder = shlex.quote(str(run.folder))
            log.info("next: python -m src.embed INPUT --encoder %s --out embeddings.parquet", folder)

    limit = config.trainer.limit_val_batches
    return run.fit(
        module,
        data,
        {"encoder": module.model.encoder.architecture, "decoder": module.model.decoder.architecture},
        make_strategy(config.trainer),
        make_callbacks(config, run.folder, data, check, pictures),
        close,
        figures,
        max_steps=plan.steps,
        max_epochs=None,
        val_check_interval=plan.validate_every or 1.0,
        check_val_every_n_epoch=None,
        limit_train_batches=plan.limit_train_batches,
        limit_val_batches=0 if config.data.validation is None else limit,
    )


def evaluate(config: Config, command: str, checkpoint: str | None) -> int:
    """Loss of a checkpoint on data.validation (`validate`) or data.test (`test`).

    Raises:
        UserError: there is no such checkpoint, its size differs from model.size, or the split is not set.
    """
    path = checkpoint_of(config.runs_folder, config.name, checkpoint)
    size = read_run(path)["config"]["model"]["size"]
    if size != config.model.size:
        raise UserError(f"{path} has a model of size {size}; set model.size={size} instead of {config.model.size}")
    split = "validation" if command == "validate" else "test"
    if getattr(config.data, split) is None:
        raise UserError(f"data.{split} is not set; {command} needs it, for example data.{split}.path=FOLDER")
    data = prepare_data(config)
    config.trainer.devices = config.trainer.num_nodes = 1  # so that every clip is seen exactly once
    config.trainer.strategy = "auto"
    module = make_module(config)
    content = read_training(path) if is_sharded(path) else torch.load(path, "cpu", mmap=True, weights_only=True)
    module.load_state_dict(content["state_dict"])
    trainer = make_trainer(config.trainer, path.parent, "auto", [], [])
    log.info("checkpoint: %s", path)
    run = trainer.validate if command == "validate" else trainer.test
    for name, value in run(module, datamodule=data, verbose=False)[0].items():
        log.log(RESULT, "%s %.4f", name, value)
    return 0


def prepare_data(config: Config) -> PretrainDataModule:
    data = PretrainDataModule(config.data, config.seed, overfit=bool(config.trainer.overfit_batches))
    data.prepare_data()
    data.setup()
    return data


def plan_run(config: Config, data: PretrainDataModule) -> Plan:
    model = build_model(config, device="meta")
    bf16 = precision(config.trainer) == "bf16-mixed"
    peak = peak_flops(find_device(config.trainer), "bf16") if bf16 else None
    return make_plan(config, model, data.summary(), bf16, memory_limit(config.trainer), data.crops_per_second(), peak)


def make_module(config: Config, init_from: str | None = None, plan: Plan | None = None) -> MAEPretraining:
    """Build the LightningModule. With `trainer.strategy=fsdp` the model stays on the meta device until it is sharded.

    Args:
        init_from: checkpoint or export that the shards are taken from; a whole model keeps its initial weights.
        plan: says what memory allows in training.
    """
    sharded = config.trainer.strategy == "fsdp"
    model = build_model(config, device="meta" if sharded else "cpu")
    model.encoder.gradient_checkpointing = plan is not None and plan.recompute
    shard_model = None

    def start(model: MaskedAutoencoder) -> None:
        if init_from:
            log.info("%s", start_from(model, init_from))

    if sharded:
        bf16 = precision(config.trainer) == "bf16-mixed"
        shard_model = partial(
            shard, seed=config.seed, bf16=bf16, compiled=compiled(config.trainer), start=start,
            num_shards=num_shards(config.trainer), keep_gathered=plan is not None and plan.keep_gathered,
        )  # fmt: skip
    elif plan is not None and compiled(config.trainer):  # not to evaluate
        compile_blocks(model)
    return MAEPretraining(model, config.optimizer, config.seed, shard_model, plan is not None and plan.keep_gathered)


def build_model(config: Config, device: str = "cpu") -> MaskedAutoencoder:
    """The network with its initial weights; device "meta" gives shapes only."""
    return create_mae(
        config.model.size,
        mask_ratio=config.objective.mask_ratio,
        mask_group=config.objective.mask_group,
        drop_path=config.model.drop_path,
        layer_scale=config.model.layer_scale,
        dct_patches=config.model.dct_patches,
        seed=config.seed,
        device=device,
    )


def load_probes(config: Config) -> tuple[ProbeClips, ProbeClips] | None:
    """Labeled clips to fit the probes on and to score them on; None without check.train and check.test."""
    check = config.check
    if check.train is None or check.test is None:
        return None
    max_clips = min(check.max_clips, _DEV_RUN_CLIPS) if config.trainer.fast_dev_run else check.max_clips
    return load_probe_clips(check.train, check.test, max_clips, config.seed)


def examples(data: PretrainDataModule, probes: tuple[ProbeClips, ProbeClips] | None) -> list[np.ndarray]:
    """Three clips to plot, the same after a resume."""
    if probes is None:
        return data.examples(3)
    waveforms = probes[1].waveforms
    return waveforms[:: max(1, len(waveforms) // 3)][:3]


def make_callbacks(
    config: Config, folder: Path, data: PretrainDataModule, check: LearningCheck | None, pictures: Reconstruction
) -> list[L.Callback]:
    """In the order in which they run at the end of a step."""
    callbacks: list[L.Callback] = [BadClips(folder / "skipped.csv", data.bad, config.data.max_bad_share)]
    if config.trainer.skip_bad_steps is not None:
        callbacks.append(SkipBadSteps(folder / "skipped_steps.csv", config.trainer.skip_bad_steps))
    return [*callbacks, *([check] if check else []), pictures]
