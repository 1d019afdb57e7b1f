"""Build `lightning.Trainer` from the settings: hardware, precision, processes, limits."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import Strategy

from src.config.settings import TrainerConfig
from src.errors import UserError
from src.training.callbacks.checkpoints import AtomicCheckpointIO
from src.training.callbacks.steps import parse_time

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
SAME_NAME = (  # settings passed to Lightning unchanged
    "max_steps", "max_epochs", "accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps",
    "limit_train_batches", "limit_val_batches", "fast_dev_run", "detect_anomaly", "deterministic", "benchmark",
    "num_nodes", "accelerator",
)  # fmt: skip


def make_trainer(
    settings: TrainerConfig,
    folder: Path | None,
    strategy: Strategy | str,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    **limits: Any,
) -> L.Trainer:
    """
    Args:
        folder: the run folder; None if nothing is written.
        strategy: from `make_strategy`.
        limits: arguments of Lightning's Trainer that override the settings, such as max_steps.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    arguments: dict[str, Any] = {name: getattr(settings, name) for name in SAME_NAME}
    if settings.overfit_batches:  # the data module repeats its first batches
        arguments["limit_train_batches"] = settings.overfit_batches
    return L.Trainer(
        **{
            **arguments,
            "devices": settings.devices,
            "strategy": strategy,
            "precision": precision(settings),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # the data modules distribute the clips over processes
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_autolog_hparams": False,  # W&B gets the settings from the run
            "enable_checkpointing": False,  # callbacks/checkpoints.py saves
            "profiler": _profiler(settings, folder),
            "callbacks": callbacks,
            "logger": loggers or False,
            "plugins": [AtomicCheckpointIO()],
            "default_root_dir": folder,
            **limits,
        }
    )


def _profiler(settings: TrainerConfig, folder: Path | None) -> Any:
    return None if settings.profiler is None else PROFILERS[settings.profiler](dirpath=folder, filename="profile")


def timer(settings: TrainerConfig) -> list[L.Callback]:
    """Stops the run after `max_time`; must precede the callback that saves."""
    return [] if settings.max_time is None else [Timer(parse_time(settings.max_time), verbose=False)]


def precision(settings: TrainerConfig) -> Any:
    """Lightning's precision; "auto" is bf16-mixed on a GPU that computes in it (Ampere or later), else 32-true.

    Raises:
        UserError: a GPU is required, but torch finds none.
    """
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={settings.accelerator}, but torch finds no GPU; set it to auto or cpu")
    if settings.precision == "16-mixed" and not _on_gpu(settings):
        raise UserError("trainer.precision=16-mixed needs a GPU; set it to auto or 32-true")
    if settings.precision != "auto":
        return settings.precision
    bf16 = _on_gpu(settings) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def find_device(settings: TrainerConfig) -> torch.device:
    """Device of this process, for computation before the trainer exists."""
    if _on_gpu(settings):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    mps = settings.accelerator in ("auto", "mps") and torch.backends.mps.is_available()
    return torch.device("mps" if mps else "cpu")


def compiled(settings: TrainerConfig) -> bool:
    """Whether blocks are compiled: `trainer.compile`; if that is null, on a GPU, given Triton and a C compiler."""
    if settings.compile is not None:
        return settings.compile
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return _on_gpu(settings) and bool(compiler) and importlib.util.find_spec("triton") is not None


def memory_limit(settings: TrainerConfig) -> float:
    """Bytes that a process may use: nine tenths of the GPU's memory, or of this machine's divided by its processes."""
    if _on_gpu(settings):
        return 0.9 * torch.cuda.get_device_properties(find_device(settings)).total_memory
    return 0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(settings.devices)


def _on_gpu(settings: TrainerConfig) -> bool:
    return settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
