"""Start the processes of a run on one machine, forward signals to them, and end them together.

`python -m src.train fit trainer.devices=8` is a parent that starts eight training processes and does not train itself.
Under torchrun or srun, which start the processes, only `take_from_launcher` is used.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

from src.config.settings import TrainerConfig
from src.errors import UserError

GRACE_SECONDS = 20  # for the other processes to exit by themselves after one has failed
_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def take_from_launcher(settings: TrainerConfig) -> None:
    """Set the number of processes in `settings`: as started by torchrun or srun; else "auto" becomes a number.

    Raises:
        UserError: the machines of the job have different numbers of processes.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        launcher, total, local = "torchrun", environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]
    elif _under_srun():
        launcher, total = "srun", environment["SLURM_NTASKS"]
        local = environment.get("SLURM_NTASKS_PER_NODE") or str(int(total) // int(environment["SLURM_NNODES"]))
    else:
        settings.devices = _num_devices(settings)
        return
    num_nodes, rest = divmod(int(total), int(local))
    if rest:
        raise UserError(f"{launcher} started {total} processes, {local} on this machine; start the same number on each")
    started, configured = (int(local), num_nodes), (settings.devices, settings.num_nodes)
    if configured[0] not in ("auto", -1) and configured not in (started, (1, 1)):
        warnings.warn(
            f"{launcher} started {started[0]} processes on each of {started[1]} machines; "
            f"trainer.devices={configured[0]} and trainer.num_nodes={configured[1]} are ignored",
            stacklevel=2,
        )
    settings.devices, settings.num_nodes = started


def _num_devices(settings: TrainerConfig) -> int:
    """Processes on a node; "auto" and -1 mean all GPUs, or one CPU process."""
    if settings.devices not in ("auto", -1):
        return int(settings.devices)
    import torch

    return max(1, torch.cuda.device_count()) if settings.accelerator in ("auto", "gpu", "cuda") else 1


def starts_its_own(settings: TrainerConfig) -> bool:
    """Whether this process must start the others: the run has several, and no launcher has started them."""
    return int(settings.devices) * settings.num_nodes > 1 and "LOCAL_RANK" not in os.environ and not _under_srun()


def run_processes(arguments: list[str], settings: TrainerConfig) -> int:
    """Run `python -m src.train` with `arguments` once per device of this machine, and wait.

    SIGTERM, SIGUSR1 and SIGINT are forwarded to all processes. If one fails, the others have `GRACE_SECONDS` to exit.
    stderr of the first process is shown live; that of the others, usually the same, only if the first does not explain
    the failure.

    Returns:
        The exit status of the processes if they agree, else 1.

    Raises:
        UserError: several machines, but MASTER_ADDR, MASTER_PORT or NODE_RANK is not set.
    """
    environment = _environment(settings)
    children: list[subprocess.Popen] = []
    stderr_files: list[IO[str]] = []  # of all but the first process

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    handlers = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        for local_rank in range(int(settings.devices)):
            rank = int(environment["NODE_RANK"]) * int(settings.devices) + local_rank
            if local_rank:
                stderr_files.append(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
            ranks = {"LOCAL_RANK": str(local_rank), "RANK": str(rank)}
            children.append(_start(arguments, environment | ranks, stderr_files[-1] if local_rank else None))
        status = _wait(children)
        if status == 1 or (status == 2 and children[0].returncode != 2):
            for file in stderr_files:
                file.seek(0)
                sys.stderr.write(file.read())
        return status
    finally:
        _kill(children)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(arguments: list[str], environment: dict[str, str], stderr: IO[str] | None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        env=environment,
        stderr=stderr,
        start_new_session=True,  # so that Ctrl-C reaches it once, forwarded by the parent
        preexec_fn=_terminate_with_parent(),
    )


def _kill(children: list[subprocess.Popen]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def _wait(children: list[subprocess.Popen]) -> int:
    """Wait for all children, or for `GRACE_SECONDS` after the first failure; returns the exit status of the run."""
    first: int | None = None  # index of the process that failed first
    deadline = float("inf")
    while True:
        codes = [child.poll() for child in children]
        failed = {i: code for i, code in enumerate(codes) if code is not None and (code in (1, 2) or code < 0)}
        if failed and first is None:
            first = min(
                failed, key=failed.__getitem__
            )  # killed processes come before those that lost contact with them
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in codes or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if len(set(codes)) == 1 and codes[0] is not None:
        return codes[0] if codes[0] >= 0 else 128 - codes[0]
    if first is None:
        first = next(i for i, code in enumerate(codes) if code)
    print(
        f"error: process {first} of {len(children)} {_how(codes[first])}; the others were stopped. Saved checkpoints "
        "are complete: run the same command with --resume auto",
        file=sys.stderr,
        flush=True,
    )
    return 1


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return f"exited with status {code}"


def _environment(settings: TrainerConfig) -> dict[str, str]:
    """Environment variables by which the processes find each other."""
    environment = dict(os.environ)
    if settings.num_nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in environment]
        if missing:
            raise UserError(
                f"trainer.num_nodes={settings.num_nodes}, but {', '.join(missing)} is not set; use torchrun or "
                "srun (docs/scale.md), or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each machine"
            )
    else:
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()), NODE_RANK="0")
    environment["WORLD_SIZE"] = str(int(settings.devices) * settings.num_nodes)
    root = str(Path(__file__).parents[3])  # so that `-m src.train` works in any folder
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return environment


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def _under_srun() -> bool:
    """Lightning's own check: a job of several tasks, not an interactive shell."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _terminate_with_parent() -> Callable[[], None] | None:
    """On Linux: send the child SIGTERM when its parent dies, so that it saves and exits."""
    if sys.platform != "linux":
        return None
    libc, set_parent_death_signal = ctypes.CDLL(None), 1
    return lambda: libc.prctl(set_parent_death_signal, int(signal.SIGTERM))
