"""Groups by name, and the learning rate at each step."""

import itertools
import math

import pytest
import torch

from src.config.settings import OptimizerConfig
from src.models import create_mae
from src.training.optimizer import make_optimizer, parameter_groups, scaled_learning_rate, schedule


def test_exactly_the_matrices_are_decayed():
    model = create_mae("tiny", layer_scale=0.1, device="meta")
    decayed, rest = parameter_groups(model, 0.1, OptimizerConfig(weight_decay=0.05))
    assert decayed["weight_decay"] == 0.05 and rest["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {names[id(p)] for p in decayed["params"]}
    assert {name.split(".")[-2] for name in matrices} == {"qkv", "proj", "fc1", "fc2", "input_proj", "outputlayer"}
    assert all(name.endswith("weight") for name in matrices)
    others = {names[id(p)] for p in rest["params"]}
    assert {"encoder.time_pos_embed", "encoder.freq_pos_embed", "decoder.mask_token", "decoder.pos_embed"} < others
    assert matrices | others == set(names.values()) and not matrices & others


def test_decay_is_decoupled_and_leaves_norms_alone():
    model = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(
        parameter_groups(model, 0.1, OptimizerConfig(weight_decay=0.5)), OptimizerConfig(), fused=True
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model["fc1"].weight, before["fc1.weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(model["norm"].weight, before["norm.weight"])


def test_schedule_warms_up_linearly_and_ends_at_its_share():
    rates = [schedule(step, 10, 110, 0.1) for step in range(130)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rates[110] == rates[129] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert schedule(0, 0, 100, 0.1) == 1.0


def test_learning_rate_scales_with_the_batch():
    assert scaled_learning_rate(3e-4, 256) == 3e-4
    assert scaled_learning_rate(3e-4, 64) == pytest.approx(0.75e-4)
