"""Which share of a command's work this process has: from torchrun or srun, or as `--part 3/16` says.

The work is a list that does not depend on the number of processes: the shards of `src.pack`, the parts of `src.embed`.
Process number r of n takes every n-th item from the r-th on and leaves out what is finished. A later run may therefore
have another number of processes.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from src.errors import UserError

_Item = TypeVar("_Item")


class Share(NamedTuple):
    """rank: of this process, from 0. size: number of processes, on all machines."""

    rank: int = 0
    size: int = 1

    def of(self, items: Sequence[_Item]) -> Sequence[_Item]:
        return items[self.rank :: self.size]

    def __str__(self) -> str:
        return f"part {self.rank + 1}/{self.size}"


ALL = Share()


def find_share(part: str | None = None, environment: Mapping[str, str] = os.environ) -> Share:
    """The share that `part`, as `3/16`, says; else that of torchrun or srun; else all of the work.

    Raises:
        UserError: it is not a part of a whole.
    """
    if part is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--part {part} is not a part of a whole; write --part 1/16 to --part 16/16")
        return Share(int(match[1]) - 1, int(match[2]))
    for rank, size in (("RANK", "WORLD_SIZE"), _slurm_names(environment)):
        if rank in environment and size in environment:
            numbers = environment[rank], environment[size]
            if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[1]):
                raise UserError(f"{rank}={numbers[0]} and {size}={numbers[1]} are no share; set --part, or unset them")
            return Share(int(numbers[0]), int(numbers[1]))
    return ALL


def _slurm_names(environment: Mapping[str, str]) -> tuple[str, str]:
    """The shell of an sbatch script or of salloc has SLURM_PROCID and SLURM_NTASKS too, but is no step of the job."""
    in_step = "SLURM_STEP_NUM_TASKS" in environment
    in_job_shell = not in_step and ("SLURM_JOB_ID" in environment or "SLURM_JOBID" in environment)
    return "SLURM_PROCID", "" if in_job_shell else "SLURM_STEP_NUM_TASKS" if in_step else "SLURM_NTASKS"


def cores() -> int:
    """Processors that this process may use: in a container or a job, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(environment: Mapping[str, str] = os.environ) -> int:
    """The cores that this process may use; those of torchrun on one machine divide them."""
    local = environment.get("LOCAL_WORLD_SIZE", "1") if "RANK" in environment else "1"
    return max(1, cores() // (int(local) if local.isdecimal() and int(local) else 1))


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those of its machine, which chooses its GPU."""
    found = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or "0"
    return int(found) if found.isdecimal() else 0
