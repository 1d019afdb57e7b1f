"""One run, whatever it trains: its folder, what it resumes, loggers, trainer, signals, exit status."""

import atexit
import copy
import importlib
import logging
import platform
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

from src.config.files import to_yaml
from src.config.settings import CallbackConfig, Config
from src.errors import UserError
from src.training.callbacks.checkpoints import Checkpoints
from src.training.callbacks.preemption import Preemption
from src.training.callbacks.progress import ProgressLine
from src.training.callbacks.step_figures import StepFigures
from src.training.distributed.parallel import lost_a_process
from src.training.metrics_file import MetricsFile
from src.training.module import TrainingModule
from src.training.resume import compare_settings
from src.training.run_folder import checkpoint_to_resume, claim_folder, read_run, run_of
from src.training.trainer import make_trainer, timer

log = logging.getLogger("src")


class Run:
    """What pretraining and classification do alike. They bring data module, LightningModule, callbacks and closing.

        run = Run(config, resume)      # reads, writes nothing
        run.start(plan)                # claims the folder
        status = run.fit(module, data, ...)

    Args:
        resume: "auto", a checkpoint's path, or None for a new run.

    Attributes:
        folder: of the run; known to the first process after `start`.
        checkpoint: that is resumed, None for a new run. before: what it says about its run.

    Raises:
        UserError: no such checkpoint; settings that a resumed run can't change.
    """

    def __init__(self, config: Config, resume: str | None = None) -> None:
        self.config, self.name = config, config.name
        self.checkpoint = checkpoint_to_resume(config.runs_folder, config.name, resume) if resume else None
        self.before: dict[str, Any] = read_run(self.checkpoint) if self.checkpoint else {}
        if self.checkpoint and "name" not in self.before:
            raise UserError(
                f"{self.checkpoint} was written by an earlier version and can't be resumed; start a new run from its "
                f"weights with model.init_from={self.checkpoint}"
            )
        self.changed = compare_settings(config, self.before["config"], self.checkpoint) if self.checkpoint else []
        self.folder = Path(config.runs_folder, config.name)
        self._own_callbacks = own_callbacks(config.callbacks)

    def start(self, plan: str) -> None:
        """Claim the folder; write settings and plan; log into it. Only the first process writes.

        Raises:
            UserError: no permission, or no room.
        """
        if self.checkpoint and self.checkpoint.parent.name == "checkpoints":
            self.folder = run_of(self.checkpoint)
        elif is_first():
            self.folder = (
                _temporary_folder()
                if self.config.trainer.fast_dev_run
                else claim_folder(self.config.runs_folder, self.config.name)
            )
        self.config.name = self.folder.name
        if not is_first():  # callbacks of the other processes learn the folder when they are set up
            return
        try:
            (self.folder / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            (self.folder / "plan.txt").write_text(f"{plan}\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error
        log_to(self.folder / "log.txt")
        if self.checkpoint:
            log.info("resuming %s at step %d", self.checkpoint, self.before["step"])
        for line in self.changed:
            log.info("changed: %s", line)
        log.info("\n%s\n", plan)

    def fold(self, number: Any) -> "Run":
        """One fold's run, in its own folder inside this one; it resumes its own last checkpoint."""
        part = copy.copy(self)
        part.folder = self.folder / f"fold-{number}"
        part.name = f"{self.folder.name}-fold-{number}"
        if is_first():
            part.folder.mkdir(exist_ok=True)
        if self.checkpoint is not None and self.checkpoint.parent.parent != part.folder:
            last = part.folder / "checkpoints" / "last.ckpt"
            part.checkpoint = last if last.exists() else None
            part.before = read_run(last) if part.checkpoint else {}
        return part

    def fit(
        self,
        module: TrainingModule,
        data: L.LightningDataModule,
        architecture: dict[str, Any],
        strategy: Strategy | str,
        callbacks: list[L.Callback],
        close: Callable[[L.Trainer, Checkpoints], None],
        figures: StepFigures,
        **limits: Any,
    ) -> int:
        """Train, then `close`; returns the exit status.

        Args:
            architecture: of the networks, for the checkpoints.
            callbacks: act before those of the run: they save last.
            close: called when training has reached its end, on every process, with the trainer and its checkpoints.
            limits: as `make_trainer`.

        Returns:
            0; 128 + the signal that ended the run early, saved; 130 when it was interrupted; 1 when a process died.
        """
        config = self.config
        about = self._about(architecture)
        checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint, about, config.classify is not None)
        preemption, progress = Preemption(), ProgressLine(Console(), figures)
        callbacks = [preemption, *callbacks, *self._own_callbacks, *timer(config.trainer), checkpoints]
        loggers = [] if config.trainer.fast_dev_run else self._loggers(about)
        trainer = make_trainer(
            config.trainer, self.folder, strategy, [*callbacks, figures, progress], loggers, **limits
        )
        weights_only = True if self.checkpoint else None
        try:
            trainer.fit(module, datamodule=data, ckpt_path=self.checkpoint, weights_only=weights_only)
            if preemption.signal:
                log.info("stopped at step %d and saved; %s", trainer.global_step, self.how_to_resume())
                return 128 + preemption.signal
            close(trainer, checkpoints)
            self._log_model(loggers, checkpoints)
            return 0
        except (KeyboardInterrupt, SystemExit):
            log.info("interrupted before the step was done; %s", self.how_to_resume())
            return 130
        except RuntimeError as error:
            if trainer.world_size == 1 or not lost_a_process(error):
                raise
            reason = f"another process of the run has died ({str(error).splitlines()[0]})"
            print(f"error: {reason}; {self.how_to_resume()}", file=sys.stderr, flush=True)
            return 1
        finally:
            for logger in loggers:
                if isinstance(logger, WandbLogger):
                    logger.experiment.finish()

    def how_to_resume(self) -> str:
        folder = self.folder.parent if self.folder.name.startswith("fold-") else self.folder
        config = shlex.quote(str(folder / "config.yaml"))
        return f"resume it with: python -m src.train fit --config {config} --resume auto"

    def _about(self, architecture: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says about its run: networks, settings, versions, its name at the start, W&B's id."""
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "lightning": L.__version__}
        return {
            "architecture": architecture,
            "config": OmegaConf.to_container(OmegaConf.structured(self.config)),
            "name": self.before.get("name", self.name),
            "wandb_id": self.before.get("wandb_id") or secrets.token_hex(4),
            "versions": versions,
        }

    def _loggers(self, about: dict[str, Any]) -> list[Logger]:
        loggers: list[Logger] = [MetricsFile(self.folder / "metrics.csv", self.before.get("step", 0))]
        tracking = self.config.tracking
        if tracking.wandb:
            import wandb

            loggers.append(
                WandbLogger(
                    project=tracking.project,
                    name=tracking.name or (self.name if self.folder.name.startswith("fold-") else self.folder.name),
                    id=about["wandb_id"],
                    resume="allow",
                    save_dir=self.folder,
                    offline=tracking.wandb == "offline",
                    config=about["config"],
                    entity=tracking.entity,
                    group=tracking.group,
                    tags=tracking.tags,
                    notes=tracking.notes,
                    job_type=tracking.job_type,
                    settings=wandb.Settings(silent=tracking.wandb == "offline"),
                )
            )
        return loggers

    def _log_model(self, loggers: list[Logger], checkpoints: Checkpoints) -> None:
        """The last and the best checkpoint as an artifact of the W&B run, with `tracking.log_model`."""
        for logger in loggers:
            if self.config.tracking.log_model and isinstance(logger, WandbLogger) and is_first():
                import wandb

                artifact = wandb.Artifact(f"model-{logger.experiment.id}", type="model")
                for path in {checkpoints.last, checkpoints.to_report()}:
                    add = artifact.add_dir if path.is_dir() else artifact.add_file
                    add(str(path), name=path.name)
                logger.experiment.log_artifact(artifact)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def own_callbacks(configs: list[CallbackConfig]) -> list[L.Callback]:
    """The user's callbacks.

    Raises:
        UserError: no such module or class, not a callback, wrong arguments.
    """
    callbacks = []
    for config in configs:
        module, _, name = config.class_path.rpartition(".")
        try:
            callback = getattr(importlib.import_module(module), name)(**config.init_args)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"callbacks: {config.class_path} cannot be made ({error})") from error
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks: {config.class_path} is not a lightning.pytorch.Callback")
        callbacks.append(callback)
    return callbacks


def log_to(file: Path) -> None:
    """Our messages, and warnings of libraries."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("src", "py.warnings", "lightning.pytorch"):
        logging.getLogger(name).addHandler(handler)


def _temporary_folder() -> Path:
    """For a run that writes nothing: removed when the command ends."""
    folder = Path(tempfile.mkdtemp(prefix="audio-encoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
