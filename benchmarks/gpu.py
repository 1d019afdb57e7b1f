"""Training steps on one GPU: speed, MFU and memory by batch size, compared with the `dasheng` package, and a trace.

    python -m benchmarks.gpu                                     base and 1.2b, batch size doubled until out of memory
    python -m benchmarks.gpu --sizes base --trace trace.json     also writes a trace (for chrome://tracing)
    python -m benchmarks.gpu --device cpu --sizes tiny --batches 2 --seconds 1.44 --steps 2      smoke test

Both use bf16 autocast, fused AdamW and 10 s clips of noise that are already on the device. Our blocks are compiled
(fused attention); the official model runs as its package does. One after the other in the same process; medians.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import profile

from benchmarks.parity import official_mae
from benchmarks.report import machine_and_date, table
from benchmarks.step import Step
from src.models import create_mae
from src.models.cost import forward_flops
from src.models.sizes import SIZES
from src.training.callbacks.step_figures import peak_flops
from src.training.distributed.parallel import compile_blocks

_RECOMPUTED = ("0.6b", "1.2b")  # sizes whose activations are recomputed, as in their presets
_MAX_BATCH = 4096  # clips


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["base", "1.2b"], choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes; default: 8, doubled until out of memory")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after three to warm up")
    parser.add_argument("--trace", metavar="FILE", help="write a trace of two of our steps, of the last size and batch")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = []
    for size in options.sizes:
        for batch in options.batches or [2**power for power in range(3, _MAX_BATCH.bit_length())]:
            try:
                rows.append(compare(size, batch, options.seconds, options.steps, device, options.trace))
            except torch.OutOfMemoryError:
                rows.append([size, batch, "out of memory", "", "", "", "", ""])
                break
    print(machine_and_date(), name)
    print(table(["size", "batch", "ours, clips/s", "official", "ratio", "MFU", "ours, GB", "official, GB"], rows))


def compare(size: str, batch: int, seconds: float, steps: int, device: torch.device, trace: str | None) -> list[object]:
    """A row of the table; cells of the official model stay empty if it runs out of memory."""
    waveform = torch.randn(batch, round(16000 * seconds), device=device) * 0.1
    ours, memory = measure(lambda: our_model(size, device), waveform, steps, trace)
    theirs = their_memory = None
    with contextlib.suppress(torch.OutOfMemoryError):
        theirs, their_memory = measure(lambda: official_mae(size).to(device), waveform, steps)
    model = create_mae(size, device="meta")
    tokens = model.encoder.num_tokens(waveform.shape[1])
    flops = 3 * batch * forward_flops(model, tokens, max(1, int(tokens * (1 - model.mask_ratio) + 1e-9)))
    peak = peak_flops(device, "bf16-mixed")
    mfu = f"{flops / ours / peak:.2f}" if peak else "peak not known"
    cells = [f"{batch / theirs:.0f}", f"{theirs / ours:.2f}"] if theirs else ["out of memory", ""]
    return [size, batch, f"{batch / ours:.0f}", *cells, mfu, gigabytes(memory), gigabytes(their_memory)]


def our_model(size: str, device: torch.device) -> nn.Module:
    model = create_mae(size, gradient_checkpointing=size in _RECOMPUTED, device="cpu").to(device)
    if device.type == "cuda":
        compile_blocks(model)
    return model


def measure(
    make: Callable[[], nn.Module], waveform: Tensor, steps: int, trace: str | None = None
) -> tuple[float, int | None]:
    """Median seconds of a training step of the network that `make` returns, and peak GPU memory in bytes."""
    device, on_gpu = waveform.device, waveform.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step, times = Step(make(), waveform), []
    for turn in range(steps + 3):
        wait_for(device)
        start = time.perf_counter()
        take(step)
        wait_for(device)
        if turn >= 3:
            times.append(time.perf_counter() - start)
    if trace:
        with profile() as profiler:
            take(step)
            take(step)
        profiler.export_chrome_trace(trace)
    return statistics.median(times), torch.cuda.max_memory_allocated(device) if on_gpu else None


def take(step: Step) -> None:
    device = step.waveform.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = step.loss()
    loss.backward()
    step.optimizer.step()
    step.optimizer.zero_grad()


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gigabytes(memory: int | None) -> str:
    return f"{memory / 1e9:.1f}" if memory else ""


if __name__ == "__main__":
    main()
