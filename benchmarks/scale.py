"""The largest preset on two CPU processes: meta-device construction, sharding, two steps, peak memory.

    python -m benchmarks.scale [--size 1.2b] [--optimizer momentum] [--processes 2]

Needs 18 GB of memory for 1.2b with momentum (12 bytes per parameter), 23 GB with AdamW (16 bytes); takes minutes.
"""

import argparse
import ctypes
import os
import resource
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from src.models.cost import count_parameters, memory_bytes
from src.models.sizes import SIZES, create_mae
from src.training.distributed.parallel import shard

STATES = {"sgd": 8, "momentum": 12, "adamw": 16}  # bytes per parameter: fp32 weight, gradient, moments
SECONDS = 10.0
M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", default="1.2b", choices=SIZES)
    parser.add_argument("--optimizer", default="momentum", choices=STATES)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    planned, needed = plan(options.size, options.optimizer, options.processes)
    print(f"{options.size}, {options.optimizer}: planned {planned / 2**30:.2f} GiB per process on {options.processes}")
    if (free := free_bytes()) < needed:
        print(f"needs {needed / 2**30:.0f} GiB of free memory, {free / 2**30:.0f} are available; stopped")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (options.processes, options.size, options.optimizer, folder), nprocs=options.processes)
        peaks = [float(file.read_text()) for file in sorted(Path(folder).glob("peak-*"))]
    for rank, peak in enumerate(peaks):
        print(f"process {rank}: {peak / 2**30:.2f} GiB at the peak, {peak / planned:.3f} of the plan")
    return 0 if all(abs(peak / planned - 1) <= 0.15 for peak in peaks) else 1


def plan(size: str, optimizer: str, processes: int) -> tuple[float, float]:
    """Bytes per process as estimated by `--plan`, and for all processes with Python and 2 GB to spare."""
    model = create_mae(size, gradient_checkpointing=True, device="meta")
    tokens = model.encoder.num_tokens(round(SECONDS * model.encoder.sample_rate))
    kept = int(tokens * (1 - model.mask_ratio))
    planned = memory_bytes(model, tokens, kept, 1, False, True, processes, STATES[optimizer])
    return planned, processes * (planned + 0.5 * 2**30) + 2 * 2**30


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def train(rank: int, processes: int, size: str, kind: str, folder: str) -> None:
    """One process; writes its peak memory, without Python and libraries, to `peak-RANK`."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # freed memory is returned at once, as by a GPU's allocator
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    before = 4096 * int(Path("/proc/self/statm").read_text().split()[1])
    start = time.perf_counter()
    model = create_mae(size, gradient_checkpointing=True, device="meta")
    shard(model, init_device_mesh("cpu", (processes,)), seed=0, bf16=False, compiled=False)
    if rank == 0:
        print(
            f"{count_parameters(model) / 1e9:.3f} B parameters built in {time.perf_counter() - start:.0f} s", flush=True
        )
    optimizer = {
        "sgd": lambda: torch.optim.SGD(model.parameters(), 1e-3),
        "momentum": lambda: torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9),
        "adamw": lambda: torch.optim.AdamW(model.parameters(), 1e-5, fused=True),
    }[kind]()
    generator = torch.Generator().manual_seed(rank)
    waveform = torch.randn(1, round(SECONDS * 16000), generator=generator) * 0.1
    for step in range(2):
        start = time.perf_counter()
        loss = model(waveform, seeds=torch.tensor([step])).loss
        loss.backward()
        loss = loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            print(
                f"step {step + 1}: loss {float(loss):.4f}, gradient norm {float(norm):.3f}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    Path(folder, f"peak-{rank}").write_text(str(peak))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
