"""One run from settings to files: data, plan, network, trainer, closing table."""

import logging
import platform
import secrets
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from src.config.settings import Config
from src.data.labelled.probe_clips import load_labelled
from src.data.pretraining.datamodule import PretrainData
from src.encoders.lightning import is_sharded, read_training
from src.errors import UserError
from src.models.mae import MaskedAutoencoder
from src.models.sizes import create_mae
from src.pretraining.closing import closing_table
from src.pretraining.learning_check import LearningCheck
from src.pretraining.module import Pretraining
from src.pretraining.plan import Plan, make_plan
from src.pretraining.reconstruction import Reconstruction
from src.pretraining.start import start_from
from src.training.callbacks.bad_clips import BadClips
from src.training.callbacks.bad_steps import SkipBadSteps
from src.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.training.callbacks.exact_resume import ExactResume
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.progress import ProgressLine
from src.training.callbacks.throughput import Throughput
from src.training.callbacks.watch import Watch
from src.training.distributed.parallel import compile_blocks, lost_a_process, make_strategy, shard
from src.training.metrics_file import MetricsFile
from src.training.run_folder import checkpoint_to_resume, compare, free_folder, read_run, start_folder

log = logging.getLogger("src")


def fit(config: Config, resume: str | None = None) -> int:
    """Train; returns the exit status: 0, or 128 + the signal that ended the run early."""
    checkpoint = checkpoint_to_resume(config.runs_folder, config.name, resume) if resume else None
    before = read_run(checkpoint) if checkpoint else {}
    changed = compare(config, before, checkpoint) if checkpoint else []
    folder = _folder(config, checkpoint)
    config.name = folder.name
    data = prepare_data(config)
    plan = plan_run(config, data)
    init_from = config.model.init_from if checkpoint is None else None
    module = make_module(config, plan.clips_per_step, init_from)
    model = module.model
    started = start_from(model, init_from) if init_from and config.trainer.strategy != "fsdp" else None
    architecture = {"encoder": model.encoder.architecture, "decoder": model.decoder.architecture}
    about = describe_run(config, architecture, before.get("wandb_id"))
    callbacks = make_callbacks(config, folder, data, about)

    if (
        getattr(rank_zero_only, "rank", 0) == 0
    ):  # callbacks of the other processes learn its folder when they are set up
        start_folder(folder, config)
        log_to(folder / "log.txt")
        (folder / "plan.txt").write_text(f"{plan}\n", encoding="utf-8")
    if checkpoint:
        log.info("going on from %s, step %d", checkpoint, before["step"])
    for line in changed:
        log.info("changed: %s", line)
    if started:
        log.info("%s", started)
    log.info("\n%s\n", plan)
    loggers = make_loggers(config, folder, about, before.get("step", 0))
    trainer = make_trainer(config, folder, callbacks, loggers)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    except (KeyboardInterrupt, SystemExit):
        log.info("interrupted before the step was done; %s", how_to_resume(folder))
        return 130
    except RuntimeError as error:
        if trainer.world_size == 1 or not lost_a_process(error):
            raise
        said = f"error: another process of the run has died ({str(error).splitlines()[0]}); {how_to_resume(folder)}"
        print(said, file=sys.stderr, flush=True)
        return 1
    finally:
        if config.tracking.wandb:
            wandb.finish()
    by_type: dict[type, Any] = {type(callback): callback for callback in callbacks}
    if signal := by_type[Preemption].signal:
        log.info("stopped at step %d and saved; %s", trainer.global_step, how_to_resume(folder))
        return 128 + signal
    if trainer.is_global_zero:
        log.info("\n%s", closing_table(trainer, by_type, folder))
    return 0


def evaluate(config: Config, command: str, checkpoint: str | None) -> int:
    """`validate`, `test` or `predict` with the weights of a checkpoint."""
    if not checkpoint:
        raise UserError(f"{command} needs --checkpoint PATH, for example runs/{config.name}/checkpoints/last.ckpt")
    path = checkpoint_to_resume(config.runs_folder, config.name, checkpoint)
    if path is None:
        raise UserError(f"--checkpoint auto: {config.runs_folder}/{config.name} has no checkpoint")
    compare(config, read_run(path), path)
    wanted = "validation" if command == "validate" else "test"
    if getattr(config.data, wanted) is None:
        raise UserError(f"data.{wanted} is not set; {command} needs it, for example data.{wanted}.path=FOLDER")
    data = prepare_data(config)
    config.trainer.devices = config.trainer.num_nodes = 1  # one process sees every clip once, and holds what it finds
    config.trainer.strategy = "auto"
    module = make_module(config, 256)
    content = read_training(path) if is_sharded(path) else torch.load(path, "cpu", mmap=True, weights_only=True)
    module.load_state_dict(content["state_dict"])
    trainer = make_trainer(config, path.parent, [], [])
    if command == "predict":
        batches = trainer.predict(module, datamodule=data)
        keys = [key for batch in batches or [] for key in batch[0]]
        embeddings = torch.cat([batch[1] for batch in batches or []]).float().cpu().numpy()
        target = path.parent.parent / "embeddings.npz"
        np.savez(target, key=np.array(keys), embedding=embeddings)
        log.info("%d embeddings of %d values: %s", len(keys), embeddings.shape[1], target)
        return 0
    run = trainer.validate if command == "validate" else trainer.test
    for name, value in run(module, datamodule=data, verbose=False)[0].items():
        log.info("%s %.4f", name, value)
    return 0


def prepare_data(config: Config) -> PretrainData:
    data = PretrainData(config.data, config.seed)
    data.prepare_data()
    data.setup()
    return data


def plan_run(config: Config, data: PretrainData) -> Plan:
    model = build_model(config, device="meta")
    return make_plan(config, model, data.facts(), precision(config) == "bf16-mixed")


def make_module(config: Config, clips_per_step: float, init_from: str | None = None) -> Pretraining:
    """With `trainer.strategy=fsdp` the model is on the meta device until each process is given its piece.

    Args:
        init_from: checkpoint whose weights the pieces are of; a whole model is left with its initial weights.
    """
    sharded, compiled = config.trainer.strategy == "fsdp", config.trainer.compile
    model = build_model(config, device="meta" if sharded else "cpu")
    pieces = None

    def start(model: MaskedAutoencoder) -> None:
        if init_from:
            log.info("%s", start_from(model, init_from))

    if sharded:
        bf16 = precision(config) == "bf16-mixed"
        pieces = partial(shard, seed=config.seed, bf16=bf16, compiled=compiled, start=start)
    elif compiled:
        compile_blocks(model)
    return Pretraining(model, config.optimizer, clips_per_step, config.trainer.steps, pieces)


def build_model(config: Config, device: str = "cpu") -> MaskedAutoencoder:
    return create_mae(
        config.model.size,
        mask_ratio=config.objective.mask_ratio,
        mask_group=config.objective.mask_group,
        drop_path=config.model.drop_path,
        layer_scale=config.model.layer_scale,
        gradient_checkpointing=config.model.gradient_checkpointing,
        seed=config.seed,
        device=device,
    )


def make_callbacks(config: Config, folder: Path, data: PretrainData, about: dict[str, Any]) -> list[L.Callback]:
    """In the order in which they act at the end of a step."""
    throughput, examples = Throughput(config.trainer.log_every_steps), None
    callbacks: list[L.Callback] = [ExactResume(config.seed), Preemption()]
    callbacks.append(BadClips(folder / "skipped.csv", data.bad, config.data.max_bad_share))
    callbacks.append(SkipBadSteps(folder / "skipped_steps.csv", config.trainer.skip_bad_steps))
    check = config.check
    if check.train is not None and check.test is not None:
        train, test = (load_labelled(source, check.max_clips, config.seed) for source in (check.train, check.test))
        callbacks.append(LearningCheck(train, test, check.every_steps, check.layer, check.pooling))
        examples = test.waveforms[:: max(1, len(test.waveforms) // 3)][:3]
    callbacks.append(Reconstruction(folder / "pictures", check.every_steps, examples))
    trainer = config.trainer
    callbacks.append(Checkpoints(folder / "checkpoints", trainer.save_every_steps, trainer.save_best, about))
    callbacks.append(Watch(trainer.log_every_steps, len(config.data.sources)))
    return [*callbacks, throughput, ProgressLine(Console(), throughput)]


def make_trainer(config: Config, folder: Path, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    settings = config.trainer
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return L.Trainer(
        default_root_dir=folder,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=make_strategy(settings),
        precision=precision(config),
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optimizer.gradient_clip,
        val_check_interval=config.check.every_steps * settings.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if config.data.validation is not None else 0,
        log_every_n_steps=settings.log_every_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the order is ours; Lightning would shuffle once more
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks/checkpoints.py saves
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
    )


def make_loggers(config: Config, folder: Path, about: dict[str, Any], resumed_at: int = 0) -> list[Logger]:
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", resumed_at)]
    if config.tracking.wandb:
        loggers.append(
            WandbLogger(
                project=config.tracking.project,
                name=config.name,
                id=about["wandb_id"],
                resume="allow",
                save_dir=folder,
                offline=config.tracking.wandb == "offline",
                config=about["config"],
                settings=wandb.Settings(silent=config.tracking.wandb == "offline"),
            )
        )
    return loggers


def precision(config: Config) -> Any:
    """What "auto" means here.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU; set it to auto or cpu")
    if config.trainer.precision != "auto":
        return config.trainer.precision
    gpu = config.trainer.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


def how_to_resume(folder: Path) -> str:
    return f"go on with: python -m src.train fit --config {folder / 'config.yaml'} --resume auto"


def describe_run(config: Config, architecture: dict[str, Any], wandb_id: str | None = None) -> dict[str, Any]:
    """What a checkpoint says of its run: networks, settings, versions, and the W&B run it belongs to."""
    return {
        "architecture": architecture,
        "config": OmegaConf.to_container(OmegaConf.structured(config)),
        "wandb_id": wandb_id or secrets.token_hex(4),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "lightning": L.__version__},
    }


def _folder(config: Config, checkpoint: Path | None) -> Path:
    if checkpoint is not None and checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent
    return free_folder(config.runs_folder, config.name)


def log_to(file: Path) -> None:
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("src", "py.warnings", "lightning.pytorch"):
        logging.getLogger(name).addHandler(handler)
