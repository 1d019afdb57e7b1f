"""Initial weights are a pure function of seed and parameter name."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from src.config.settings import OptimizerConfig
from src.models import create_encoder, create_mae
from src.models.initialize import initialize
from src.models.vit import AudioViT
from src.pretraining.module import MAEPretraining
from src.training.optimizer import make_optimizer


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_weights_depend_on_the_seed_not_on_the_global_generator():
    first = create_mae("tiny", seed=3).state_dict()
    torch.randn(17)
    assert equal(create_mae("tiny", seed=3).state_dict(), first)


def test_the_global_generator_is_not_used():
    before = torch.get_rng_state()
    create_mae("tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_created_on_meta_gets_the_same_weights_and_buffers():
    expected = create_mae("tiny", layer_scale=0.1, seed=5)
    made = create_mae("tiny", layer_scale=0.1, seed=5, device="meta")
    made.to_empty(device="cpu")
    for value in [*made.parameters(), *made.buffers()]:
        value.data.fill_(7)
    initialize(made.encoder, 5, "encoder")
    initialize(made.decoder, 5, "decoder")
    assert equal(made.state_dict(), expected.state_dict())
    assert equal(dict(made.named_buffers()), dict(expected.named_buffers()))
    waveform = torch.rand(2, 16000)
    seeds = torch.arange(2)
    assert torch.equal(made(waveform, seeds=seeds).loss, expected(waveform, seeds=seeds).loss)


def test_the_encoder_of_an_mae_equals_create_encoder():
    assert equal(create_mae("tiny", seed=2).encoder.state_dict(), create_encoder("tiny", seed=2).state_dict())


def test_another_seed_or_name_gives_other_matrices():
    first, second = create_mae("tiny", seed=0).state_dict(), create_mae("tiny", seed=1).state_dict()
    drawn = [name for name, value in first.items() if value.is_floating_point() and value.unique().numel() > 1]
    assert not any(torch.equal(first[name], second[name]) for name in drawn)
    values = torch.stack([first[name].flatten()[:128] for name in drawn])
    shared = torch.corrcoef(values).triu(diagonal=1)  # 1 if two parameters share their random numbers
    assert len(drawn) > 60
    assert shared.abs().max() < 0.6


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return create_mae("tiny").state_dict()


def test_encoder_matrices_are_xavier(weights):
    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        value = weights[f"encoder.blocks.5.{name}.weight"]
        bound = (6 / sum(value.shape)) ** 0.5
        assert value.abs().max() <= bound
        assert value.std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert value.mean().abs() < 0.01 * bound


def test_decoder_matrices_are_normal_002(weights):
    names = ["input_proj", "outputlayer", "blocks.1.attn.qkv", "blocks.3.mlp.fc2"]
    for name in names:
        value = weights[f"decoder.{name}.weight"] / 0.02
        assert value.std() == pytest.approx(1, rel=0.02)
        assert value.mean().abs() < 0.03
        assert (value.abs() < 1).float().mean() == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("width", [100, 192, 768])
def test_a_cosine_transform_of_patches_is_scipys(width):
    encoders = [AudioViT(width, 0, 1, dct_patches=each) for each in (True, False)]
    for encoder in encoders:
        initialize(encoder, 0, "encoder")
    weight, random = (encoder.patch_embed.proj.weight[:, 0].detach() for encoder in encoders)
    transformed = dctn(np.eye(256).reshape(256, 64, 4), axes=(1, 2), norm="ortho")  # (value, band, frame cosine)
    expected = torch.from_numpy(transformed).permute(2, 1, 0).reshape(256, 64, 4)[:width] / 3**0.5
    torch.testing.assert_close(weight[:256], expected.float(), atol=1e-5, rtol=0)
    assert weight[256:].eq(0).all() and encoders[0].patch_embed.proj.bias.eq(0).all()
    assert weight[0].norm().item() == pytest.approx(random.flatten(1).norm(dim=1).mean().item(), rel=0.02)


def test_the_cosine_transform_is_not_trained_and_its_input_keeps_its_scale():
    network = create_mae("tiny", dct_patches=True)
    fixed = [name for name, parameter in network.encoder.named_parameters() if not parameter.requires_grad]
    assert fixed == ["init_bn.weight", "init_bn.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    before = network.encoder.patch_embed.proj.weight.clone()
    module = MAEPretraining(network, OptimizerConfig(lr=1.0, weight_decay=1.0))
    groups = module.parameter_groups(1.0)
    network(torch.rand(2, 16000)).loss.backward()
    make_optimizer(groups, module.optimizer_config, fused=False).step()
    assert torch.equal(network.encoder.patch_embed.proj.weight, before)


def test_positions_patches_and_constants(weights):
    assert weights["encoder.time_pos_embed"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["encoder.freq_pos_embed"].std() == pytest.approx(0.02, rel=0.2)
    assert weights["decoder.mask_token"].std() == pytest.approx(0.02, rel=0.2)
    assert not weights["decoder.pos_embed"].any()
    for kind in ("weight", "bias"):
        value = weights[f"encoder.patch_embed.proj.{kind}"]
        assert 0.9 / 16 < value.abs().max() <= 1 / 16
        assert value.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.1)
    for name, value in weights.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
    assert (weights["encoder.init_bn.running_var"] == 1).all()
    assert weights["encoder.init_bn.num_batches_tracked"] == 0
