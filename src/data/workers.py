"""DataLoader worker settings, shared by the data modules, and how many there may be."""

import os
import signal
from typing import Any

from src.config.settings import DataConfig


def loader_settings(config: DataConfig) -> dict[str, Any]:
    """Keyword arguments for a DataLoader."""
    import torch  # commands ask for `cores` before they import it

    workers = config.num_workers
    return {
        "num_workers": workers,
        "prefetch_factor": config.prefetch_factor,
        "pin_memory": torch.cuda.is_available() if config.pin_memory is None else config.pin_memory,
        "persistent_workers": config.persistent_workers and workers > 0,
        "worker_init_fn": leave_signals_to_the_parent,
    }


def cores() -> int:
    """Processors that this process may use: in a container or a job, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave_signals_to_the_parent(worker: int) -> None:
    """Ignore signals to the process group, so that workers live until the parent has saved the run and exits."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
