"""Between logs, a step of pretraining does nothing for which the host would have to wait for a GPU."""

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from src import train
from src.models.sizes import create_mae

ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
         aten.is_nonzero.default, aten.unique_dim.default, aten._unique2.default, aten.item.default}  # fmt: skip
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Reads(TorchDispatchMode):
    """Lists operations that read a value of a tensor, or whose output size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_mask = operation in INDEXED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if operation in READS or by_mask:
            self.seen.append(str(operation))
        return operation(*args, **(kwargs or {}))


class Watch(L.Callback):
    """The operations of whole batches, with the hooks of all callbacks, by optimizer step."""

    seen: dict[int, list[str]]

    def on_train_start(self, trainer, module):
        Watch.seen, loop = {}, trainer.fit_loop.epoch_loop
        advance = loop.advance

        def watched(fetcher):
            reads = Reads()
            with reads:
                advance(fetcher)
            Watch.seen.setdefault(trainer.global_step, []).extend(reads.seen)

        loop.advance = watched


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_that_logs_nothing_reads_nothing_from_the_device(tmp_path, two_blocks, accumulated):
    """Clips of different lengths, some under 50 ms apart, with the guard, figures and clipping of a default run."""
    demo = "kind: huggingface, path: data/demo"
    command = ["fit", "--config", str(ROOT / "configs/quickstart.yaml"), f"runs_folder={tmp_path}", "name=a",
               "trainer.max_steps=8", "trainer.log_every_n_steps=4", "data.batch_size=4", "data.window_clips=4",
               "data.validation=null", f"data.sources=[{{{demo}, split: train}}]", "check.train=null",
               "check.test=null", "tracking.wandb=null", "trainer.val_check_interval=1000", "optimizer.warmup_steps=2",
               "model.drop_path=0.1", "trainer.gradient_clip_val=1.0", "trainer.accelerator=cpu",
               f"trainer.accumulate_grad_batches={accumulated}",
               "callbacks=[{class_path: tests.training.test_no_waiting.Watch}]"]  # fmt: skip
    assert train.main(command) == 0
    assert set(Watch.seen) == set(range(2 - accumulated, 9))
    assert {step: seen for step, seen in Watch.seen.items() if step % 4 and seen} == {}
    assert Watch.seen[4]  # the test sees what the logging step reads


class Copies(TorchDispatchMode):
    """Lists copies between devices for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation is aten._to_copy.default and args[0].device != result.device:
            self.total += 1
            if result.device.type == "cpu" or not (kwargs or {}).get("non_blocking"):
                self.seen.append(f"{args[0].device} to {result.device}")
        return result


def test_the_network_on_a_gpu_copies_nothing_back():
    """Tensors without memory that say they are on a GPU; clips of different lengths, one under 50 ms."""
    model = create_mae("tiny", device="meta", drop_path=0.1)
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
        waveform = torch.empty(4, 20000, device="cuda")
        output = model(waveform, [20000, 3000, 500, 10000])
        assert output.loss.device.type == "cuda" and output.prediction.shape == (24 + 3 + 0 + 12, 256)
    assert copies.seen == [] and copies.total == 2  # the lengths, and how many tokens of each length stay visible
