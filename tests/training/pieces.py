"""A process of two that hold a piece of a network each."""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

from src.models.sizes import create_mae
from src.training.distributed.parallel import shard


def pieces(rank, folder):
    """What `shard` gives two processes, put together again."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = create_mae("tiny", seed=3, layer_scale=0.1, device="meta")
    shard(model, init_device_mesh("cpu", (2,)), seed=3, bf16=False, compiled=False)
    assert sum(p.to_local().numel() for p in model.parameters()) < 0.51 * sum(p.numel() for p in model.parameters())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(state, f"{folder}/whole.pt")
        torch.save(dict(model.named_buffers()), f"{folder}/buffers.pt")
    dist.destroy_process_group()
