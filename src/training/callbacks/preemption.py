"""On SIGTERM, SIGUSR1 (preemption by a cluster) or Ctrl-C: finish the step, save and exit, resumable."""

import signal
import time
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch

from src.training.callbacks.steps import stepped


class Preemption(L.Callback):
    """Stops the run at the end of a step if any process received a signal; `Checkpoints` saves.

    Lightning's handlers save nothing and may block under DDP; these only set a flag. Several processes compare flags
    about every `agree_every_seconds`. Each comparison also sets the number of steps until the next, as many as the
    slowest process takes in that time, so that all processes compare at the same step. A second Ctrl-C exits at once.

    Attributes:
        signal: number of the signal that stopped the run, or None.
    """

    agree_every_seconds = 2.0  # each comparison synchronizes GPU and CPU
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._flag = 0
        self._before: dict[int, Any] = {}
        self._steps_to_go, self._period, self._agreed_at = 1, 1, time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._agreed_at = time.monotonic()
        for number in self.signals:
            self._before[number] = signal.signal(number, self._remember)
        # In each batch Lightning broadcasts whether its handler, now replaced, has seen SIGTERM, and waits for the GPU.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._flag:
                raise KeyboardInterrupt
            print("\nCtrl-C: finishing the step and saving; press it again to stop at once", flush=True)
        self._flag = number

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not stepped(trainer, batch_idx):
            return
        flag = self._flag if trainer.world_size == 1 else self._agree(pl_module.device)
        if flag:
            self.signal = flag
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # else Lightning validates once more; there may be no time

    def _agree(self, device: torch.device) -> int:
        """The largest flag over all processes; 0 between comparisons."""
        self._steps_to_go -= 1
        if self._steps_to_go:
            return 0
        seconds_a_step = (time.monotonic() - self._agreed_at) / self._period
        period = max(1.0, self.agree_every_seconds // max(seconds_a_step, 1e-3))
        agreed = torch.tensor([float(self._flag), -period], device=device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        flag, negative_period = agreed.tolist()
        self._steps_to_go = self._period = round(-negative_period)
        self._agreed_at = time.monotonic()
        return int(flag)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
