"""How long a process itself computes, apart from the time in which it waits for others."""

import time
from typing import Any

import torch
from torch import nn

from src.models.log_mel import MelBatchNorm


class ComputeTime:
    """Measures training forward passes, without the sum over processes in `MelBatchNorm`.

    The backward pass is left out, since there all wait for the slowest. A sharded model gathers weights in the forward
    pass too, so that a slow process slows the others a little. On a GPU, events measure without waiting for it.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._begin: Any = None
        self._spans: list[tuple[Any, Any]] = []
        self._hooks = [model.register_forward_pre_hook(self._start), model.register_forward_hook(self._stop)]
        for module in model.modules():
            if isinstance(module, MelBatchNorm):
                self._hooks += [module.register_forward_pre_hook(self._stop), module.register_forward_hook(self._start)]

    def _start(self, module: nn.Module, *_: Any) -> None:
        self._begin = self._now() if module.training else None

    def _stop(self, module: nn.Module, *_: Any) -> None:
        if self._begin is not None:
            self._spans.append((self._begin, self._now()))
            self._begin = None

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> float:
        """Seconds since the last call; waits for the GPU."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return sum(end - begin for begin, end in spans)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000

    def remove(self) -> None:
        """Stop measuring."""
        for hook in self._hooks:
            hook.remove()
