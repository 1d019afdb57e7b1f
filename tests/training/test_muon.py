"""Muon: orthogonal updates of the blocks' matrices, AdamW for the rest."""

import copy

import pytest
import torch

from src.config.settings import OptimizerConfig
from src.models import create_mae
from src.training.muon import Muon, iterate, iterate_by_squares, orthogonalize
from src.training.optimizer import make_optimizer, parameter_groups

CONFIG = OptimizerConfig(name="muon", weight_decay=0.1)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_singular_values_are_near_one_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ orthogonalize(matrix[None])[0] @ v.T / (0.2 * max(shape) ** 0.5)
    large = found.diagonal()[s > 0.02 * s.max()]
    assert len(large) >= 60 and large.min() > 0.4 and found.diagonal().max() < 1.3
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-3)


def test_query_key_and_value_are_matrices_of_their_own():
    matrix = (
        torch.randn(192, 64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e3, 1, 1]).repeat_interleave(64)[:, None]
    )
    parts = torch.cat([orthogonalize(part[None])[0] for part in matrix.chunk(3)])
    torch.testing.assert_close(orthogonalize(matrix[None])[0], parts)


@pytest.mark.parametrize("rank", [64, 3])
def test_the_short_way_for_wide_matrices_is_the_same(rank):
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(2, 64, rank, generator=generator) @ torch.randn(2, rank, 256, generator=generator)
    x = (x + 1e-6 * torch.randn(x.shape, generator=generator)) / x.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(iterate_by_squares(x), iterate(x), rtol=0, atol=5e-4 * float(iterate(x).abs().max()))


def run(optimizer, parameters, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_other_parameters_take_the_steps_of_adamw_and_a_resume_is_exact():
    networks = [create_mae("tiny", layer_scale=0.1) for _ in range(3)]
    configs = [CONFIG, OptimizerConfig(weight_decay=0.1), CONFIG]
    muon, adamw, resumed = (
        make_optimizer(parameter_groups(network, 1e-3, config), config, fused=True)
        for network, config in zip(networks, configs, strict=True)
    )
    assert isinstance(muon, Muon) and [group["muon"] for group in muon.param_groups] == [False, False, True]
    for optimizer, network in ((muon, networks[0]), (adamw, networks[1])):
        run(optimizer, list(network.parameters()), 2)
    for (name, ours), theirs in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(ours, theirs) != ("blocks." in name and ours.ndim == 2), name
    networks[2].load_state_dict(networks[0].state_dict())
    resumed.load_state_dict(copy.deepcopy(muon.state_dict()))
    for optimizer, network in ((muon, networks[0]), (resumed, networks[2])):
        run(optimizer, list(network.parameters()), 1, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[2].parameters(), strict=True))


def test_the_closure_sees_all_parameters():
    """Lightning zeroes and clips gradients in it."""
    network = torch.nn.ModuleDict(
        {"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "head": torch.nn.Linear(4, 4)}
    )
    optimizer = make_optimizer(parameter_groups(network, 1e-3, CONFIG), CONFIG, fused=True)

    def closure():
        optimizer.zero_grad()
        loss = network["head"](network["blocks"][0](torch.ones(1, 4))).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    network["blocks"][0].weight.grad.fill_(1e6)
    optimizer.step(closure)
    assert all(parameter.grad.abs().max() < 100 for parameter in network.parameters())


def test_a_bad_step_changes_nothing():
    """`SkipBadSteps` sets `found_inf`, as a GradScaler does for fused AdamW: the host does not know of it."""
    network = torch.nn.ModuleDict(
        {"blocks": torch.nn.ModuleList([torch.nn.Linear(4, 4)]), "head": torch.nn.Linear(4, 4)}
    )
    optimizer = make_optimizer(parameter_groups(network, 1e-3, CONFIG), CONFIG, fused=True)
    optimizer.found_inf = torch.tensor(0.0)
    run(optimizer, list(network.parameters()), 2)
    before = copy.deepcopy((network.state_dict(), optimizer.state[network["blocks"][0].weight]["momentum"]))
    optimizer.found_inf = torch.tensor(1.0)
    for parameter in network.parameters():
        parameter.grad.fill_(torch.nan)
    optimizer.step()
    assert all(torch.equal(value, before[0][name]) for name, value in network.state_dict().items())
    assert torch.equal(optimizer.state[network["blocks"][0].weight]["momentum"], before[1])
