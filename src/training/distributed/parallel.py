"""Train one network on several processes: replicated (DDP) or sharded (FSDP2).

`shard` contains all of FSDP: meta device -> activation checkpointing -> compile -> shards -> memory -> initial weights.
The network itself stays plain single-device code, as in torchtitan.
"""

import io
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint import async_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from src.config.settings import TrainerConfig
from src.encoders.lightning import by_name, is_sharded
from src.models.initialize import fill, initialize
from src.models.mae import MaskedAutoencoder

# A collective that waits longer than this fails. A dead process is noticed sooner: by gloo immediately, under NCCL by
# the launcher (src/training/distributed/launch.py, torchrun, srun --kill-on-bad-exit).
TIMEOUT = timedelta(minutes=10)


def make_strategy(settings: TrainerConfig, find_unused_parameters: bool = False) -> Strategy | str:
    """Lightning's strategy for `trainer.strategy` and the number of processes.

    Args:
        find_unused_parameters: some parameters have no gradient in some steps.
    """
    world_size = int(settings.devices) * settings.num_nodes
    if settings.strategy == "fsdp":
        return Sharded(data_parallel_size=world_size, tensor_parallel_size=1, timeout=TIMEOUT)
    if settings.strategy == "ddp" or world_size > 1:
        # Without copies of gradients, and of buffers, which all processes compute alike (MelBatchNorm sums over them).
        return DDPStrategy(
            timeout=TIMEOUT,
            find_unused_parameters=find_unused_parameters,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            static_graph=not find_unused_parameters and settings.accumulate_grad_batches == 1,
        )
    return "auto"


def num_shards(settings: TrainerConfig) -> int:
    """Number of shards of the model. Several machines of several GPUs hold a sharded copy each (HSDP)."""
    if settings.strategy != "fsdp":
        return 1
    devices = int(settings.devices)
    return devices if devices > 1 else settings.num_nodes


def reduce(values: torch.Tensor, operation: Literal["sum", "max"]) -> torch.Tensor:
    """Reduce in place over all processes. Unlike Lightning's `strategy.reduce`, it has no barrier: nothing waits."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)
    return values


def shard(
    model: MaskedAutoencoder,
    mesh: DeviceMesh,
    seed: int,
    bf16: bool,
    compiled: bool,
    start: Callable[[MaskedAutoencoder], Any] | None = None,
    num_shards: int | None = None,
    keep_gathered: bool = False,
) -> None:
    """Shard a network on the meta device over the processes of `mesh`, in place.

    Activation checkpointing is part of the encoder (`encoder.gradient_checkpointing`). It wraps the call of each block,
    so that recomputation gathers the block's weights again.

    Args:
        bf16: compute in bf16 and reduce gradients in fp32; the optimizer always sees fp32 weights.
        start: called with the initialized network, to load other weights.
        num_shards: processes that share a copy of the model, neighbors in `mesh`; their gradients are summed over the
            copies. None: all.
        keep_gathered: keep the blocks' weights between forward and backward pass: more memory, less communication.
    """
    if compiled:
        compile_blocks(model)
    # Do not cast inputs: that would include the waveform. Autocast casts where needed.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = policy if bf16 else MixedPrecisionPolicy(cast_forward_inputs=False)
    if num_shards not in (None, mesh.size()):
        sizes = (mesh.size() // num_shards, num_shards)
        mesh = init_device_mesh(mesh.device_type, sizes, mesh_dim_names=("copies", "shards"))
    fully_shard(model.encoder.init_bn, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))  # fp32
    reshard = not keep_gathered
    for blocks in (model.encoder.blocks, model.decoder.blocks):
        sharded = [fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard) for block in blocks]
        for block, following in pairwise(sharded):
            block.set_modules_to_forward_prefetch([following])
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    register_fsdp_forward_method(model, "run")

    device = torch.device(mesh.device_type, torch.cuda.current_device()) if mesh.device_type == "cuda" else "cpu"
    model.to_empty(device=device)
    initialize(model.encoder, seed, "encoder")
    initialize(model.decoder, seed, "decoder")
    if start is not None:
        start(model)


def compile_blocks(model: MaskedAutoencoder, backend: str | Callable = "inductor") -> None:
    """`torch.compile` each block in place: weights keep their names, and equal blocks share the compiled code.

    The first shape is compiled as it is; when batch size or number of tokens change, once more for all sizes.
    """
    # Blocks with different drop-path rates are compiled separately, each for training and for evaluation.
    blocks = (*model.encoder.blocks, *model.decoder.blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * len(blocks))
    for block in blocks:
        block.compile(backend=backend)


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with asynchronous saves, which can also load the checkpoint of an unsharded run.

    When Lightning loads such a file, it numbers the optimizer's parameters in module order; ours are in groups.

    Attributes:
        writing: the save in progress: a future for this process's shards, and the content of meta.pt, which is
            written once all processes are done (`checkpoint.py`).
    """

    writing: tuple[Future, bytes] | None = None
    _save_group: dist.ProcessGroup | None = None  # keeps the writer's collectives apart from training's

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Copy the shards to CPU memory and start writing them."""
        if self._save_group is None:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._save_group = group
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{number}": each for number, each in enumerate(checkpoint.pop("optimizer_states", []))}
        written = async_save(state, checkpoint_id=Path(filepath), process_group=self._save_group)
        assert isinstance(written, Future)
        rest = io.BytesIO()
        torch.save(checkpoint, rest)  # now, since the next step changes its content
        self.writing = written, rest.getvalue()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return super().load_checkpoint(path, weights_only=weights_only)
        assert self.model is not None
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        load_whole(self.model, content.pop("state_dict"))
        options = StateDictOptions(full_state_dict=True)
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            set_optimizer_state_dict(
                self.model, optimizer, by_name(state, names(self.model, optimizer)), options=options
            )
        return content


def load_whole(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load full tensors, the same on each process, into a network that may be sharded."""
    tensors = module.state_dict(keep_vars=True)
    assert set(tensors) == set(state), set(tensors) ^ set(state)
    with torch.no_grad():
        for name, tensor in tensors.items():
            fill(tensor, state[name])


def names(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimizer's parameters, in the order of its groups."""
    name_of = {parameter: name for name, parameter in module.named_parameters()}
    return [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def lost_a_process(error: BaseException) -> bool:
    """Whether `error` suggests that another process has died."""
    if isinstance(error, dist.DistError):  # from NCCL and the store, including timeouts
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "Connection refused")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
