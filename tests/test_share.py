"""Which share of the work a process takes from its environment."""

import pytest

from src.errors import UserError
from src.share import Share, default_workers, find_share

BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "embed", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}


@pytest.mark.parametrize(
    ("part", "environment", "expected"),
    [
        (None, {}, Share(0, 1)),
        (None, {"RANK": "2", "WORLD_SIZE": "8"}, Share(2, 8)),
        (None, {"RANK": "2"}, Share(0, 1)),
        (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Share(3, 4)),
        (None, BATCH_SHELL, Share(0, 1)),
        (None, {**BATCH_SHELL, "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "16"}, Share(5, 16)),
        (None, {**BATCH_SHELL, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "1"}, Share(0, 1)),
        (None, {**BATCH_SHELL, "SLURM_STEP_NUM_TASKS": "2", "RANK": "9", "WORLD_SIZE": "16"}, Share(9, 16)),
        ("3/16", {"RANK": "2", "WORLD_SIZE": "8"}, Share(2, 16)),
        ("1/1", {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Share(0, 1)),
    ],
)
def test_the_share(part, environment, expected):
    assert find_share(part, environment) == expected


@pytest.mark.parametrize("environment", [{"RANK": "8", "WORLD_SIZE": "8"}, {"RANK": "-1", "WORLD_SIZE": "8"}])
def test_no_share_of_a_whole(environment):
    with pytest.raises(UserError, match="RANK"):
        find_share(None, environment)


@pytest.mark.parametrize("size", [1, 3, 5, 40])
def test_shares_are_everything_once(size):
    items = list(range(37))
    assert sorted(item for rank in range(size) for item in Share(rank, size).of(items)) == items


def test_processes_of_torchrun_divide_the_cores():
    cores = default_workers({})
    assert default_workers({"RANK": "0", "LOCAL_WORLD_SIZE": str(cores)}) == 1
    assert default_workers({"LOCAL_WORLD_SIZE": "64"}) == cores
