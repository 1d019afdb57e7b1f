"""What tells that a long run goes as it should: memory, arithmetic, waiting, the slowest process, hours a source."""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch

from src.models.cost import forward_flops
from src.pretraining.module import Pretraining

PEAK_BF16_TFLOPS = {  # dense, of the makers' data sheets; the first name that the device's name holds counts
    "B200": 2250.0, "H200": 989.0, "GH200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A40": 150.0, "A30": 165.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip


class Watch(L.Callback):
    """A row every `every_steps`, of the steps since the last one; of the first process but where it says all.

    - watch/data_wait_share: of a step's time; watch/tflops: of the network, padding included, without what is
      recomputed; watch/mfu: its share of the GPU's peak, where that is known and precision is bf16.
    - watch/memory_gigabytes: the process's peak; watch/gpu_memory_gigabytes: the GPU's.
    - watch/slowest_over_mean and watch/slowest_process, of all: time a process needs by itself, which is waiting for
      data and the forward pass; all wait for the slowest in the rest.
    - watch/hours_source_N: audio seen of `data.sources.N` by all processes, also before a resume.
    """

    def __init__(self, every_steps: int, num_sources: int) -> None:
        self.every_steps = every_steps
        self._samples = torch.zeros(num_sources, dtype=torch.int64)  # of each source, of all processes
        self._new_samples = torch.zeros_like(self._samples)  # of this process since the last row, on its device
        self._world_size = 1
        self._flops: dict[int, float] = {}  # of a clip, by its samples
        self._clear()

    def _clear(self) -> None:
        self._waits: list[float] = []
        self._durations: list[float] = []
        self._rates: list[float] = []
        self._own_seconds: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"samples": (self._samples + self._new_samples.cpu() * self._world_size).tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if len(state_dict["samples"]) == len(self._samples):  # else other sources than before
            self._samples = torch.tensor(state_dict["samples"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Pretraining)
        self._world_size, self._new_samples = trainer.world_size, torch.zeros_like(self._samples).to(pl_module.device)
        self._step_end: float | None = None
        self._forward_seconds = 0.0
        self._hooks = [
            pl_module.model.register_forward_pre_hook(lambda *_: self._start_forward()),
            pl_module.model.register_forward_hook(lambda *_: self._end_forward()),
        ]

    def _start_forward(self) -> None:
        self._forward_start = time.perf_counter()

    def _end_forward(self) -> None:
        self._forward_seconds += time.perf_counter() - self._forward_start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_end = None  # the next batch's time is not that of a step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        self._step_end = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._new_samples.index_add_(0, batch["source"], batch["length"])
        now = time.perf_counter()
        self._wait = None if self._step_end is None else now - self._step_end
        self._forward_seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretraining)
        now = time.perf_counter()
        if self._wait is not None and self._step_end is not None:
            duration = now - self._step_end
            self._waits.append(self._wait)
            self._durations.append(duration)
            self._rates.append(self._flops_of(batch, pl_module) / duration)
            self._own_seconds.append(self._wait + self._forward_seconds)
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole and (trainer.global_step % self.every_steps == 0 or trainer.global_step == trainer.max_steps):
            self._log(trainer, pl_module)
            self._clear()
        self._step_end = time.perf_counter()

    def _flops_of(self, batch: dict[str, Any], module: Pretraining) -> float:
        """A training step's, of this process's batch."""
        clips, samples = batch["waveform"].shape
        if samples not in self._flops:
            tokens = module.model.encoder.num_tokens(samples)
            kept = max(1, int(tokens * (1 - module.model.mask_ratio) + 1e-9))
            self._flops[samples] = 3 * forward_flops(module.model, tokens, kept)
        return clips * self._flops[samples]

    def _log(self, trainer: L.Trainer, module: Pretraining) -> None:
        values = {"memory_gigabytes": peak_memory_bytes() / 1e9}
        if module.device.type == "cuda":
            values["gpu_memory_gigabytes"] = torch.cuda.max_memory_allocated(module.device) / 1e9
        self._samples += trainer.strategy.reduce(self._new_samples, reduce_op="sum").cpu()
        self._new_samples = torch.zeros_like(self._new_samples)
        for number, samples in enumerate(self._samples.tolist()):
            values[f"hours_source_{number}"] = samples / module.model.encoder.sample_rate / 3600
        own = torch.tensor(statistics.fmean(self._own_seconds) if self._own_seconds else 0.0, device=module.device)
        if trainer.world_size > 1:
            everyone = torch.as_tensor(module.all_gather(own)).flatten()
            if float(everyone.min()) > 0:  # else there was no whole step since the last row, in one of them
                values["slowest_process"] = float(everyone.argmax())
                values["slowest_over_mean"] = float(everyone.max() / everyone.mean())
        if self._rates:
            rate = statistics.median(self._rates)
            values["data_wait_share"] = sum(self._waits) / sum(self._durations)
            values["tflops"] = rate / 1e12
            if (peak := peak_flops(module.device, str(trainer.precision))) is not None:
                values["mfu"] = rate / peak
        module.log_dict({f"watch/{name}": value for name, value in values.items()})


def peak_flops(device: torch.device, precision: str, names: Sequence[str] = tuple(PEAK_BF16_TFLOPS)) -> float | None:
    """Operations a second that the device's matrix units do in bf16; None where that is not known."""
    if device.type != "cuda" or "bf16" not in precision:
        return None
    name = torch.cuda.get_device_name(device)
    found = next((each for each in names if each in name), None)
    return PEAK_BF16_TFLOPS[found] * 1e12 if found else None


def peak_memory_bytes() -> int:
    """Of this process since it started, without the GPU's."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
