"""Time of a training step (forward, backward, AdamW) compared with the official `AudioTransformerMAE`, and a profile.

    python -m benchmarks.step              # all cases, a few minutes
    python -m benchmarks.step tiny-1.4s    # one of them

Both networks take turns (A B A B ...) in one process, so that other load affects both equally; compare the ratio of the
medians. Same sizes and batch, fp32, fused AdamW, two threads. The matrix product, the reference for the step's GFLOP/s,
is timed in the same rounds.
"""

import statistics
import sys
import time
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.parity import demo_waveform, official_mae
from benchmarks.report import machine_and_date, table
from src.models import create_mae
from src.models.mae import MaskedAutoencoder


class Case(NamedTuple):
    size: str
    seconds: float
    batch: int
    rounds: int


CASES = {
    "tiny-10s": Case("tiny", 10.0, 8, 15),
    "tiny-1.4s": Case("tiny", 1.44, 32, 25),  # 36 tokens: the official group mask needs an even number
    "base-10s": Case("base", 10.0, 4, 9),
}

# The self time of an operator counts for the first group with a word in its name.
GROUPS = {
    "matrix products": ("addmm", "aten::mm", "aten::bmm", "mkldnn", "mkl_linear", "aten::linear"),
    "attention": ("scaled_dot_product",),
    "GELU": ("gelu",),
    "norms": ("layer_norm",),
    "indexing": ("gather", "scatter", "index", "sort", "nonzero", "where", "masked"),
    "sums, copies, other elementwise": ("",),
}


class Step:
    """A network with its optimizer; calling it runs one training step."""

    def __init__(self, network: nn.Module, waveform: Tensor) -> None:
        self.network, self.waveform = network.train(), waveform
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def loss(self) -> Tensor:
        if isinstance(self.network, MaskedAutoencoder):
            return self.network(self.waveform).loss
        return self.network(self.waveform, return_loss=True)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare(case: Case) -> tuple[Step, list[object]]:
    """Our step and a row of the table."""
    waveform = torch.stack([demo_waveform(case.seconds, i * case.seconds) for i in range(case.batch)])
    ours, theirs = Step(create_mae(case.size), waveform), Step(official_mae(case.size), waveform)
    square = torch.randn(2048, 2048)
    jobs = {"ours": ours, "official": theirs, "product": lambda: square @ square}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(case.rounds + 2):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn >= 2:  # warmed up
                times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    peak = 2 * 2048**3 / 1e9 / seconds["product"]
    speeds = [count_gflop(step) / seconds[name] for name, step in (("ours", ours), ("official", theirs))]
    row = [
        f"{case.size} {case.seconds:g} s x {case.batch}",
        f"{1000 * seconds['ours']:.0f}",
        f"{1000 * seconds['official']:.0f}",
        f"{seconds['official'] / seconds['ours']:.2f}",
        f"{speeds[0]:.0f}",
        f"{speeds[1]:.0f}",
        f"{peak:.0f}",
        f"{peak / speeds[0]:.2f}",
    ]
    return ours, row


def count_gflop(step: Step) -> float:
    """GFLOP of forward and backward; matrix products only, as usual."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # the counter does not support fused attention on CPUs
        step.loss().backward()
    step.optimizer.zero_grad()
    return counter.get_total_flops() / 1e9


def profile_step(step: Step, repeats: int = 3) -> list[list[object]]:
    """Rows of (part, ms per step, share) by operator; front end and optimizer are one part each."""
    spans = {
        "Optimizer.step": "optimizer",
        "Optimizer.zero_grad": "optimizer",
        "front end": "front end (log-mel, batch norm)",
    }
    encoder, tokenize = step.network.encoder, step.network.encoder.tokenize

    def named_tokenize(*args):
        with record_function("front end"):
            return tokenize(*args)

    encoder.tokenize = named_tokenize
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(repeats):
            step()
    del encoder.tokenize

    def part_of(event) -> str:
        above = event
        while above is not None:
            for prefix, part in spans.items():
                if above.name.startswith(prefix):
                    return part
            above = above.cpu_parent
        return next(group for group, words in GROUPS.items() if any(word in event.name for word in words))

    milliseconds: Counter[str] = Counter()
    for event in trace.events():
        milliseconds[part_of(event)] += event.self_cpu_time_total / 1000 / repeats
    total = sum(milliseconds.values())
    return [[part, f"{value:.1f}", f"{100 * value / total:.1f} %"] for part, value in milliseconds.most_common()]


def main(names: list[str]) -> None:
    torch.set_num_threads(2)
    print(machine_and_date(), "\n")
    rows, profiles = [], []
    for name in names or CASES:
        step, row = compare(CASES[name])
        rows.append(row)
        profiles.append((row[0], profile_step(step)))
    header = [
        "step",
        "ours, ms",
        "official, ms",
        "ratio",
        "ours, GFLOP/s",
        "official, GFLOP/s",
        "2048³ product, GFLOP/s",
    ]
    print(table([*header, "possible speedup"], rows))
    for name, parts in profiles:
        print(f"\n{name}: profile of our step\n")
        print(table(["part", "ms", "share"], parts))


if __name__ == "__main__":
    main(sys.argv[1:])
