"""Metrics of training steps: speed, waiting for data, gradient norm, memory, FLOP/s, slowest process."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L
import torch

from src.training.callbacks.compute_time import ComputeTime
from src.training.callbacks.steps import log_is_due, stepped
from src.training.module import TrainingModule

PEAK_BF16_TFLOPS = {  # dense, from the vendors' data sheets; the first key contained in the device name applies
    "B200": 2250.0, "H200": 989.0, "GH200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "A800": 312.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A40": 150.0, "A30": 165.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip


class StepFigures(L.Callback):
    """Logs every `log_every_n_steps`. Place it after other callbacks, so that their time does not count as waiting.

    `train/` is about the run:
        clips_per_second and data_wait_share (of the time): since the start or resume, all processes.
        audio_hours: all processes, without padding, including before a resume.
        gradient_norm, learning_rate, hours_to_go.

    `watch/` is about the steps since the last row, on rank 0 unless noted:
        data_wait_share: of the time.
        tflops: TFLOP/s of the network, with padding, without recomputation.
        mfu: share of the GPU's peak, if that is known and precision is bf16.
        memory_gigabytes, gpu_memory_gigabytes: peak since the start.
        slowest_over_mean, slowest_process: over all processes, of the time for data and `ComputeTime`; in the rest of
            the step all wait for the slowest.
        hours_source_N: audio from `data.sources.N`, all processes.

    Args:
        num_sources: number of data sources; 0 if batches do not contain the source of a clip.
        flops: FLOPs of a training step on one clip of a given number of samples; None if unknown.

    Attributes:
        hours: audio of all processes. seconds: training time with checks and saves. Both include the time before a
            resume.
    """

    def __init__(self, num_sources: int = 0, flops: Callable[[int], float] | None = None) -> None:
        self.flops = flops
        self.seconds = self.clips_per_second = self.wait_share = 0.0
        # Samples per source (or one total) over all processes; those since the last row are counted for this process
        # only, on its device.
        self._samples = torch.zeros(max(1, num_sources), dtype=torch.int64)
        self._new_samples = torch.zeros_like(self._samples)
        self._num_sources, self._world_size = num_sources, 1
        self._clear()

    def _clear(self) -> None:
        self._waits: list[float] = []
        self._durations: list[float] = []
        self._flops = 0.0  # of the steps in `_durations`

    @property
    def hours(self) -> float:
        return int(self._samples.sum()) / 16000 / 3600

    def state_dict(self) -> dict[str, Any]:
        samples = self._samples + self._new_samples.cpu() * self._world_size
        return {"samples": samples.tolist(), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        if len(state_dict["samples"]) == len(self._samples):  # otherwise the sources have changed
            self._samples = torch.tensor(state_dict["samples"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._world_size, self._new_samples = trainer.world_size, torch.zeros_like(self._samples).to(pl_module.device)
        self._begin = self._step_end = time.perf_counter()
        self._clips = 0
        self._waited = self._paused = 0.0
        self._whole_step = False  # whether all time since the last step was spent waiting for data
        self._compute = ComputeTime(pl_module.model, pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._compute.remove()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start, self._whole_step = time.perf_counter(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused = time.perf_counter() - self._validation_start

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict) -> None:
        self._whole_step = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if "length" in batch:
            heard = batch.get("heard", batch["length"])
            if self._num_sources:
                self._new_samples.index_add_(0, batch["source"], heard)
            else:
                self._new_samples += heard.sum()
        self._wait = now - self._step_end - self._paused
        self._waited += self._wait
        self._paused = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        due = stepped(trainer, batch_idx) and log_is_due(trainer, trainer.global_step)
        if due and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # the steps since the last row are done: their times together are true
        now = time.perf_counter()
        duration, elapsed = now - self._step_end, now - self._begin
        self._clips += len(next(each for each in batch.values() if torch.is_tensor(each))) * trainer.world_size
        self.seconds += duration
        self.clips_per_second, self.wait_share = self._clips / elapsed, self._waited / elapsed
        if self._whole_step:
            self._waits.append(self._wait)
            self._durations.append(duration)
            if self.flops is not None and "waveform" in batch:
                clips, samples = batch["waveform"].shape
                self._flops += clips * self.flops(samples)
        if due:
            self._log(trainer, pl_module)
            self._clear()
        self._step_end, self._whole_step = time.perf_counter(), True

    def _log(self, trainer: L.Trainer, module: TrainingModule) -> None:
        self._samples += trainer.strategy.reduce(self._new_samples, reduce_op="sum").cpu()
        self._new_samples = torch.zeros_like(self._new_samples)
        figures = {
            "train/clips_per_second": self.clips_per_second,
            "train/audio_hours": self.hours,
            "train/data_wait_share": self.wait_share,
            "train/gradient_norm": module.gradient_norm(),
            "train/learning_rate": trainer.optimizers[0].param_groups[-1]["lr"],
            "train/hours_to_go": self.seconds_to_go(trainer) / 3600,
            "watch/memory_gigabytes": peak_memory_bytes() / 1e9,
        }
        if module.device.type == "cuda":
            figures["watch/gpu_memory_gigabytes"] = torch.cuda.max_memory_allocated(module.device) / 1e9
        if self._durations:
            figures["watch/data_wait_share"] = sum(self._waits) / sum(self._durations)
        if self._flops:
            rate = self._flops / sum(self._durations)
            figures["watch/tflops"] = rate / 1e12
            if (peak := peak_flops(module.device, str(trainer.precision))) is not None:
                figures["watch/mfu"] = rate / peak
        if self._num_sources:
            for number, samples in enumerate(self._samples.tolist()):
                figures[f"watch/hours_source_{number}"] = samples / 16000 / 3600
        module.log_dict({**figures, **self._slowest(trainer, module)})

    def _slowest(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        seconds = self._compute.read()
        if trainer.world_size == 1:
            return {}
        own = torch.tensor(sum(self._waits) + seconds, device=module.device)
        everyone = torch.as_tensor(module.all_gather(own)).flatten()
        slowest = {"process": float(everyone.argmax()), "over_mean": float(everyone.max() / everyone.mean())}
        return {f"watch/slowest_{name}": value for name, value in slowest.items()}

    def seconds_to_go(self, trainer: L.Trainer) -> float:
        """Remaining time at the mean speed of the run so far."""
        steps = int(trainer.estimated_stepping_batches)
        return self.seconds / max(1, trainer.global_step) * max(0, steps - trainer.global_step)


def peak_flops(device: torch.device, precision: str, names: Sequence[str] = tuple(PEAK_BF16_TFLOPS)) -> float | None:
    """The device's peak FLOP/s in bf16; None if unknown or `precision` is not bf16."""
    if device.type != "cuda" or "bf16" not in precision:
        return None
    name = torch.cuda.get_device_name(device)
    key = next((each for each in names if each in name), None)
    return PEAK_BF16_TFLOPS[key] * 1e12 if key else None


def peak_memory_bytes() -> int:
    """Peak memory of this process, without GPU memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
