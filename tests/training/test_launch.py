"""Who starts the processes: the command itself, torchrun, srun; and two hosts."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from src.config.settings import TrainerConfig
from src.errors import UserError
from src.training.distributed import launch
from tests.training.processes import column, finish, fit, processes_of, same, start, wait_for_step


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Losses of a run on one process."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder, "one", "data.batch_size=8")
    return column(folder, "one")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "0"}, (8, 2)),
        ({"SLURM_NTASKS": "32", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "8", "SLURM_JOB_NAME": "x"}, (4, 8)),
        ({}, (1, 1)),
    ],
    ids=["torchrun", "srun", "plain"],
)
def test_the_launcher_says_how_many_processes_there_are(monkeypatch, environment, found):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = TrainerConfig()
    launch.take_from_launcher(settings)
    assert (settings.devices, settings.num_nodes) == found
    assert not launch.starts_its_own(settings)
    if environment:
        with pytest.warns(UserWarning, match=r"trainer\.devices=3 and trainer\.num_nodes=1 are ignored"):
            launch.take_from_launcher(TrainerConfig(devices=3))


def test_unlike_machines_and_unknown_ones_are_refused_in_a_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"num_nodes=2.*MASTER_ADDR.*docs/scale\.md"):
        launch.run_processes([], TrainerConfig(num_nodes=2))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="7 processes, 4 on this machine"):
        launch.take_from_launcher(TrainerConfig())


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.slow
def test_torchrun_on_one_machine(one, tmp_path):
    """It says how many processes there are; when one is killed it ends the others."""
    finish(start(tmp_path, "torchrun", "data.batch_size=4", "trainer.strategy=fsdp",
                 launcher=[*TORCHRUN, "--standalone", "--nproc-per-node=2"]))  # fmt: skip
    same(one, column(tmp_path, "torchrun"))
    process = start(tmp_path, "cut", "data.batch_size=4", launcher=[*TORCHRUN, "--standalone", "--nproc-per-node=2"])
    wait_for_step(tmp_path, "cut", 3, process)
    os.kill(processes_of(process.pid)[1], signal.SIGKILL)
    assert "another process of the run has died" in finish(process, status=1, seconds=60)


@pytest.fixture
def two_hosts():
    """Two network namespaces with an address each, joined by a cable."""
    cable = [
        "ip netns add wt-a",
        "ip netns add wt-b",
        "ip link add wt-a0 netns wt-a type veth peer name wt-b0 netns wt-b",
    ]
    for name, address in (("wt-a", "10.77.0.1/24"), ("wt-b", "10.77.0.2/24")):
        cable += [f"ip -n {name} addr add {address} dev {name}0", f"ip -n {name} link set {name}0 up",
                  f"ip -n {name} link set lo up"]  # fmt: skip
    try:
        for line in cable:
            done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{line}: {done.stderr.strip()}")
        yield "wt-a", "wt-b"
    finally:
        for name in ("wt-a", "wt-b"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="there is no ip command")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_hosts_that_meet_through_torchrun(one, tmp_path, two_hosts, strategy):
    """Each in a network namespace of its own."""
    both = []
    for number, host in enumerate(two_hosts):
        launcher = ["ip", "netns", "exec", host, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}",
                    "--rdzv-backend=c10d", "--rdzv-id=x", f"--rdzv-conf=is_host={1 - number}",
                    "--rdzv-endpoint=10.77.0.1:29400",
                    f"--local-addr=10.77.0.{number + 1}"]  # fmt: skip
        environment = {"GLOO_SOCKET_IFNAME": f"{host}0"}
        both.append(start(tmp_path, "hosts", "data.batch_size=4", f"trainer.strategy={strategy}",
                          launcher=["env", *(f"{k}={v}" for k, v in environment.items()), *launcher]))  # fmt: skip
    for process in both:
        finish(process)
    same(one, column(tmp_path, "hosts"))
