"""Training steps on one GPU beside the `dasheng` package: speed, MFU, memory, host-device synchronizations, a trace.

    python -m benchmarks.gpu --out FOLDER                   base and 1.2b; under four minutes on an H100
    python -m benchmarks.gpu --out FOLDER --sizes base --batches 64 256 512 --no-official
    python -m benchmarks.gpu --device cpu --sizes tiny --batches 2 --seconds 1.44 --steps 2      smoke test

Both use bf16 autocast, fused AdamW, gradient clipping and clips of noise that are already on the device. Our blocks are
compiled; the official model runs as its package does. One after the other in the same process; medians. What is done
when the time is up is printed; the rest says so. FOLDER gets gpu.txt (all that is printed) and a trace a size.
The last part trains through Lightning, with all callbacks that run in each step, and needs its packages.
"""

import argparse
import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.parity import official_mae
from benchmarks.report import machine_and_date, table
from benchmarks.syncs import debug_mode, describe, listed
from src.models import create_mae
from src.models.cost import memory_bytes, training_flops
from src.models.mae import MaskedAutoencoder
from src.models.sizes import SIZES

BATCHES = {"tiny": (256, 1024), "small": (256, 1024), "base": (64, 256, 512), "0.6b": (32, 128), "1.2b": (32, 128)}
HEADER = ["size", "batch", "model", "ms a step", "clips/s", "MFU", "peak GB", "first step, s"]
WARM_UP = 3  # steps


class Step:
    """A network with its optimizer; calling it runs one training step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.train()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def __call__(self, waveform: Tensor, length: list[int] | None = None) -> None:
        device = waveform.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            if isinstance(self.network, MaskedAutoencoder):
                loss = self.network(waveform, length).loss
            else:
                loss = self.network(waveform, return_loss=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Report:
    """Prints, and keeps what was printed in a file, so that an interrupted run leaves what it has."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.rows = folder, []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "gpu.txt").write_text("", encoding="utf-8")

    def __call__(self, text: str) -> None:
        print(text, flush=True)
        if self.folder is not None:
            with open(self.folder / "gpu.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)
    report = Report(options.out)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report(f"{machine_and_date()}, {name}, CUDA {torch.version.cuda}\n")
    rows: list[list[object]] = []
    makers: dict[str, Callable[[str], nn.Module]] = {"ours": functools.partial(our_model, options)}
    if not options.no_official:
        makers["official"] = functools.partial(official_model, device)
    for size in options.sizes:
        for model, make in makers.items():
            rows += measure_model(report, options, size, model, make, deadline)
    report("\n" + table(HEADER, rows) + "\n")
    check_training(report, device)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["base", "1.2b"], choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, help="clips; default: depends on the size")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--steps", type=int, default=15, help=f"timed steps, after {WARM_UP} to warm up")
    parser.add_argument("--minutes", type=float, default=2.8, help="measure no further batch size after this time")
    parser.add_argument("--no-compile", action="store_true", help="run our blocks as they are")
    parser.add_argument("--no-official", action="store_true", help="measure ours only")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for gpu.txt and traces")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no GPU; the smoke test of --help runs on a CPU")
    return options


def our_model(options: argparse.Namespace, size: str) -> nn.Module:
    model = create_mae(size, device=options.device)
    if options.device.startswith("cuda"):
        tokens = model.encoder.num_tokens(round(16000 * options.seconds))
        largest = max(options.batches or BATCHES[size])
        needed = memory_bytes(model, tokens, tokens // 4, largest, bf16=True, recompute=False)
        limit = 0.9 * torch.cuda.get_device_properties(0).total_memory
        model.encoder.gradient_checkpointing = needed > limit  # as the plan of a run decides
    if options.device.startswith("cuda") and not options.no_compile:
        torch._dynamo.config.recompile_limit = 64  # all blocks share one cache: sizes, shapes, with padding or without
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            block.compile()
    return model


def official_model(device: torch.device, size: str) -> nn.Module:
    with device:  # its initialization is slow on a CPU
        return official_mae(size).to(device)


def measure_model(
    report: Report, options: argparse.Namespace, size: str, name: str, make: Callable[[str], nn.Module], deadline: float
) -> list[list[object]]:
    """Rows of one network by batch; lists its synchronizations and writes its trace at the first batch size."""
    device, rows = torch.device(options.device), []
    step = None
    for batch in options.batches or BATCHES[size]:
        if time.monotonic() > deadline:
            rows.append([size, batch, name, "time is up", "", "", "", ""])
            continue
        try:
            waveform = torch.randn(batch, round(16000 * options.seconds), device=device) * 0.1
            first = step is None
            step = step or Step(make(size))
            rows.append([size, batch, name, *measure(step, waveform, options.steps)])
            report(" ".join(map(str, rows[-1])))
            if first and device.type == "cuda":
                check_step(report, size, name, step, waveform)
                if name == "ours":
                    trace(report, size, step, waveform)
        except torch.OutOfMemoryError:
            rows.append([size, batch, name, "out of memory", "", "", "", ""])
            break
    step = waveform = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def measure(step: Step, waveform: Tensor, steps: int) -> list[str]:
    """Cells: median ms of a step, clips per second, MFU, peak GB, seconds of the first step (compilation)."""
    device = waveform.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(steps + WARM_UP):
        wait_for(device)
        start = time.perf_counter()
        step(waveform)
        wait_for(device)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[WARM_UP:])
    memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if device.type == "cuda" else ""
    cells = [f"{1000 * seconds:.1f}", f"{len(waveform) / seconds:.0f}", mfu(step.network, waveform, seconds)]
    return [*cells, memory, f"{times[0]:.1f}"]


def mfu(network: nn.Module, waveform: Tensor, seconds: float) -> str:
    """Share of the GPU's dense bf16 peak, without what is recomputed."""
    if waveform.device.type != "cuda" or not isinstance(network, MaskedAutoencoder):
        return ""
    from src.training.callbacks.step_figures import peak_flops

    peak = peak_flops(waveform.device, "bf16-mixed")
    flops = len(waveform) * training_flops(network, waveform.shape[1])
    return f"{flops / seconds / peak:.2f}" if peak else f"{flops / seconds / 1e12:.0f} TFLOP/s"


def check_step(report: Report, size: str, name: str, step: Step, waveform: Tensor) -> None:
    """Synchronizations of a step on whole clips, and for ours also on clips of different lengths and in error mode."""
    num_samples = waveform.shape[1]
    ragged = [num_samples - row * num_samples // (2 * len(waveform)) for row in range(len(waveform))]
    for title, length in (("", None), (" with padding", ragged)):
        if length is not None and name != "ours":
            continue
        step(waveform, length)  # compiles
        calls: Counter[str] = Counter()
        with listed(calls):
            step(waveform, length)
        report(f"synchronizations, {size}, {name}{title}: {describe(calls, 1)}")
        if name == "ours":
            try:
                with debug_mode("error"):
                    step(waveform, length)
                report('    set_sync_debug_mode("error"): passes')
            except RuntimeError as error:
                report(f'    set_sync_debug_mode("error"): FAILS, {str(error).splitlines()[0]}')
                step.optimizer.zero_grad()


def trace(report: Report, size: str, step: Step, waveform: Tensor) -> None:
    """The kernels that take longest, and a trace of two steps for chrome://tracing or Perfetto."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(waveform)
        step(waveform)
        wait_for(waveform.device)
    report(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=15, max_name_column_width=60))
    if report.folder is not None:
        profiler.export_chrome_trace(str(report.folder / f"trace-{size}.json.gz"))


def check_training(report: Report, device: torch.device) -> None:
    """Synchronizations of whole batches of a Lightning run, with the bad-step guard, figures, clipping and logging."""
    try:
        from benchmarks.training_syncs import train
    except ImportError as error:
        report(f"synchronizations of a training run: not measured ({error})")
        return
    report(train(device))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
