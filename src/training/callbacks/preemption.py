"""SIGTERM and SIGUSR1 (a cluster takes the machine back) and Ctrl-C: finish the step, save, leave resumable."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch


class Preemption(L.Callback):
    """Stops the run at the end of a step on which any process was signalled; the checkpoint is saved by `Checkpoints`.

    Lightning's own handlers save nothing and may block under DDP; these only set a flag that all processes agree on.
    A second Ctrl-C interrupts at once. `signal` is the number that ended the run, None if none did.
    """

    agree_every_steps = 5  # several processes compare their flags this often: it makes the GPU wait for the CPU
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._flag = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in self.signals:
            self._before[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._flag:
                raise KeyboardInterrupt
            print("\nCtrl-C: finishing the step and saving; once more to stop at once", flush=True)
        self._flag = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        flag = self._flag
        if trainer.world_size > 1:
            if trainer.global_step % self.agree_every_steps:
                return
            agreed = torch.tensor(float(flag), device=pl_module.device)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
            flag = int(agreed)
        if flag:
            self.signal = flag
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate once more; the time may not be ours

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
