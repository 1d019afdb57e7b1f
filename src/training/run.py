"""A training run of any kind: run folder, resuming, loggers, trainer, signals, exit status."""

import atexit
import copy
import importlib
import logging
import platform
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from src.atomic import FolderLock
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
from src.training.tracking import alert, check_tracking, log_model, make_loggers, start_wandb, sweep_id, wandb_runs
from src.training.trainer import make_trainer, timer
from src.verbosity import NORMAL, level

log = logging.getLogger("src")


class Run:
    """The parts that pretraining and classification share.

        with Run(config, resume) as run:   # only reads
            run.start(plan)                # creates the run folder; no other process can write to it until the end
            status = run.fit(module, data, ...)

    Args:
        resume: "auto", a checkpoint path, or None for a new run.

    Attributes:
        folder: the run folder; correct on rank 0 after `start`.
        checkpoint: the checkpoint that is resumed; None for a new run.
        before: what that checkpoint records about its run (`read_run`).

    Raises:
        UserError: the checkpoint does not exist, a setting changed that a resumed run must keep, or as
            `check_tracking`.
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
        self._lock: FolderLock | None = None
        self._own_callbacks = own_callbacks(config.callbacks)
        if not config.trainer.fast_dev_run and is_first():
            check_tracking(config)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock:
            self._lock.close()

    def start(self, plan: str) -> None:
        """Create the run folder, write settings and plan, and log to it. Only rank 0 writes.

        Raises:
            UserError: the folder cannot be written, or another process writes to it.
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
        if not is_first():  # callbacks of other processes get the folder from rank 0 in `setup`
            return
        self._hold()
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

    def _hold(self) -> None:
        """Lock the folder until the process ends, however it does."""
        try:
            self._lock = FolderLock(self.folder)
        except BlockingIOError:
            raise UserError(
                f"another process is writing to {self.folder}; wait for it, or start a new run without --resume"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked against a second process (%s)", self.folder, error.strerror)

    def fold(self, number: Any) -> "Run":
        """The run of one fold, in a subfolder; it resumes the fold's own last checkpoint."""
        run = copy.copy(self)
        run.folder = self.folder / f"fold-{number}"
        run.name = f"{self.folder.name}-fold-{number}"
        if is_first():
            run.folder.mkdir(exist_ok=True)
        if self.checkpoint is not None and self.checkpoint.parent.parent != run.folder:
            last = run.folder / "checkpoints" / "last.ckpt"
            run.checkpoint = last if last.exists() else None
            run.before = read_run(last) if run.checkpoint else {}
        return run

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
        """Train, then call `close`.

        Args:
            architecture: of the networks, saved in checkpoints.
            callbacks: run before those of this class, which save.
            close: called on every process when training is complete, with the trainer and its checkpoints.
            limits: as `make_trainer`.

        Returns:
            Exit status: 0; 128 + the signal that stopped the run, saved; 130 if interrupted; 1 if a process died.
        """
        config, about, preemption = self.config, self._about(architecture), Preemption()
        checkpoints = Checkpoints(self.folder / "checkpoints", config.checkpoint, about, config.classify is not None)
        before = [preemption, *callbacks, *self._own_callbacks, *timer(config.trainer)]
        ordered = [*before, checkpoints, figures]
        if level() <= NORMAL:
            ordered.append(ProgressLine(Console(), figures))
        loggers = [] if config.trainer.fast_dev_run else self._loggers(about)
        trainer = make_trainer(config.trainer, self.folder, strategy, ordered, loggers, **limits)
        weights_only = True if self.checkpoint else None
        try:
            trainer.fit(module, datamodule=data, ckpt_path=self.checkpoint, weights_only=weights_only)
            if preemption.signal:
                stopped = f"stopped at step {trainer.global_step} and saved; {self.how_to_resume()}"
                log.info("%s", stopped)
                if preemption.signal != signal.SIGINT:
                    alert(loggers, "preempted", stopped)
                return 128 + preemption.signal
            close(trainer, checkpoints)
            if config.tracking.log_model and is_first():
                log_model(loggers, {checkpoints.last, checkpoints.to_report()}, self.folder / "splits.csv")
            return 0
        except (KeyboardInterrupt, SystemExit):
            log.info("interrupted during a step; %s", self.how_to_resume())
            return 130
        except RuntimeError as error:
            if trainer.world_size == 1 or not lost_a_process(error):
                raise
            reason = f"another process of the run has died ({str(error).splitlines()[0]})"
            print(f"error: {reason}; {self.how_to_resume()}", file=sys.stderr, flush=True)
            return 1
        finally:
            for run in wandb_runs(loggers):
                run.finish()

    def how_to_resume(self) -> str:
        folder = self.folder.parent if self.folder.name.startswith("fold-") else self.folder
        config = shlex.quote(str(folder / "config.yaml"))
        return f"resume it with: python -m src.train fit --config {config} --resume auto"

    def _about(self, architecture: dict[str, Any]) -> dict[str, Any]:
        """The record in each checkpoint: architecture, settings, versions, name at the start, W&B id."""
        versions = {"python": platform.python_version(), "torch": str(torch.__version__), "lightning": L.__version__}
        return {
            "architecture": architecture,
            "config": asdict(self.config),
            "name": self.before.get("name", self.name),
            "wandb_id": self.before.get("wandb_id") or sweep_id() or secrets.token_hex(4),
            "versions": versions,
        }

    def _loggers(self, about: dict[str, Any]) -> list[Logger]:
        file = MetricsFile(self.folder / "metrics.csv", self.before.get("step", 0))
        loggers = [file, *make_loggers(self.config, self.folder, self.name, about["wandb_id"])]
        if is_first():
            start_wandb(loggers, self.config.model.init_from)
        return loggers


def is_first() -> bool:
    """Whether this process is rank 0, which writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def own_callbacks(configs: list[CallbackConfig]) -> list[L.Callback]:
    """Create the user's callbacks.

    Raises:
        UserError: the class does not exist, refuses its arguments or is not a callback.
    """
    callbacks = []
    for config in configs:
        module, _, name = config.class_path.rpartition(".")
        try:
            callback = getattr(importlib.import_module(module), name)(**config.init_args)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"callbacks: cannot create {config.class_path} ({error})") from error
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks: {config.class_path} is not a lightning.pytorch.Callback")
        callbacks.append(callback)
    return callbacks


def log_to(file: Path) -> None:
    """Write our log messages and the warnings of libraries to a file."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("src", "py.warnings", "lightning.pytorch"):
        logging.getLogger(name).addHandler(handler)


def _temporary_folder() -> Path:
    """For fast_dev_run; removed when the process exits."""
    folder = Path(tempfile.mkdtemp(prefix="audio-encoder-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
