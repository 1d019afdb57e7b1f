"""DataLoader worker settings, shared by the data modules."""

import signal
from typing import Any

import torch

from src.config.settings import DataConfig
from src.memory import keep_freed_memory


def loader_settings(config: DataConfig) -> dict[str, Any]:
    """Keyword arguments for a DataLoader."""
    workers = config.num_workers
    return {
        "num_workers": workers,
        "prefetch_factor": config.prefetch_factor,
        "pin_memory": torch.cuda.is_available() if config.pin_memory is None else config.pin_memory,
        "persistent_workers": config.persistent_workers and workers > 0,
        "worker_init_fn": start_worker,
    }


def start_worker(worker: int) -> None:
    """Ignore signals to the process group, so that workers live until the parent has saved the run and exits."""
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
