"""Processes that hold a piece of a network each."""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh

from src.models.sizes import create_mae
from src.training.distributed.parallel import shard


def pieces(rank, folder):
    """What `shard` gives two processes, put together again."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = create_mae("tiny", seed=3, layer_scale=0.1, dct_patches=True, device="meta")
    shard(model, init_device_mesh("cpu", (2,)), seed=3, bf16=False, compiled=False)
    assert sum(p.to_local().numel() for p in model.parameters()) < 0.51 * sum(p.numel() for p in model.parameters())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(state, f"{folder}/whole.pt")
        torch.save(dict(model.named_buffers()), f"{folder}/buffers.pt")
    dist.destroy_process_group()


def two_copies_of_two_halves(rank, folder):
    """Four processes, a step of two accumulated batches, gradients reduced at the second; against one process."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=4)
    model = create_mae("tiny", seed=3, device="meta")
    mesh = init_device_mesh("cpu", (4,))
    shard(model, mesh, seed=3, bf16=False, compiled=False, num_shards=2, keep_gathered=True)
    weight = model.encoder.blocks[0].attn.qkv.weight
    assert weight.device_mesh.shape == (2, 2) and weight.to_local().numel() * 2 == weight.numel()
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(8, 16000, generator=generator) * 0.1
    whole = create_mae("tiny", seed=3)
    for network in (model, whole):
        network.encoder.init_bn.eval()
    for part in range(2):
        model.set_requires_gradient_sync(part == 1)
        row = slice(4 * part + rank, 4 * part + rank + 1)
        model(waveform[row], seeds=torch.arange(8)[row]).loss.backward()
    (whole(waveform, seeds=torch.arange(8)).loss * 2).backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-3, atol=1e-5)
    dist.destroy_process_group()


def autocast_and_shards(rank, folder):
    """One process: the blocks' inputs and the loss, under autocast and as shards in bf16."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=1)
    waveform = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    whole, sharded = create_mae("tiny", seed=3), create_mae("tiny", seed=3, device="meta")
    shard(sharded, init_device_mesh("cpu", (1,)), seed=3, bf16=True, compiled=False)
    types, losses = [], []
    for model in (whole, sharded):
        for blocks in (model.encoder.blocks, model.decoder.blocks):
            blocks[-1].register_forward_hook(lambda _, inputs, output: types.append((inputs[0].dtype, output.dtype)))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(float(model(waveform, seeds=torch.arange(2)).loss))
    assert types == [(torch.bfloat16, torch.bfloat16)] * 4
    assert abs(losses[0] - losses[1]) < 2e-3
    dist.destroy_process_group()
