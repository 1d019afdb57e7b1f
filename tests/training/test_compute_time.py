"""The slowest process is the one that computes longest, not the one that waits longest for the others."""

import time

import torch
from torch import nn

from src.models.log_mel import MelBatchNorm
from src.training.callbacks.compute_time import ComputeTime


class Waiting(MelBatchNorm):
    seconds = 0.0

    def forward(self, log_mel, valid=None):
        time.sleep(self.seconds)
        return super().forward(log_mel, valid)


class Network(nn.Module):
    """Works for so long, waits for others in the batch norm, and works again."""

    def __init__(self, works: float, waits: float) -> None:
        super().__init__()
        self.norm, self.works = Waiting(4), works
        self.norm.seconds = waits

    def forward(self, log_mel):
        time.sleep(self.works)
        log_mel = self.norm(log_mel)
        time.sleep(self.works)
        return log_mel


def seconds(works, waits):
    network = Network(works, waits)
    compute = ComputeTime(network, torch.device("cpu"))
    for _ in range(2):
        network(torch.randn(2, 4, 5))
    network.eval()(torch.randn(2, 4, 5))  # validation does not count
    return compute.read() / 2, compute.read()


def test_waiting_does_not_count():
    (slow, rest), (fast, _) = seconds(works=0.03, waits=0.0), seconds(works=0.01, waits=0.05)
    assert 0.06 <= slow < 0.09 and rest == 0.0
    assert 0.02 <= fast < 0.05
