"""Learning does what the settings say: which blocks learn and how fast, losses, masks, adapters."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from src.classification.augment import SpecAugment
from src.classification.lora import add_adapters, has_adapters, remove_adapters
from src.classification.module import AudioClassification, layer_groups
from src.config.settings import AugmentConfig, ClassifyConfig
from src.encoders.dasheng import arguments_of
from src.encoders.load import load_classifier, load_encoder, read_checkpoint
from src.encoders.low_rank import merge, save_adapters
from src.encoders.save import save_encoder
from src.errors import UserError
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.log_mel import LogMel
from src.models.sizes import create_mae
from src.models.vit import AudioViT
from src.pretraining.start import start_from

TOLERANCE = 1e-5
NAMES = ["a", "b", "c"]


def encoder(depth=6, drop_path=0.0, seed=0) -> AudioViT:
    network = AudioViT(48, depth, 3, drop_path=drop_path)
    initialize(network, seed, "encoder")
    network.init_bn.running_mean.fill_(-30)
    network.init_bn.running_var.fill_(200)
    return network


def noise(seconds=0.5, rows=2) -> torch.Tensor:
    return torch.randn(rows, round(16000 * seconds), generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("layer", [0, 1, 4, 6])
def test_blocks_above_the_layer_are_not_kept_and_the_output_is_its(layer):
    whole = encoder().eval()
    expected = whole.embed(noise(), layer=layer)
    model = AudioClassifier(whole, NAMES, layer).eval()
    assert len(whole.blocks) == 6  # the encoder that was given stays as it is
    assert torch.equal(model.embed(noise()), expected)
    assert torch.equal(model.encoder.embed(noise()), expected)  # the encoder alone gives what its classifier reads
    assert len(model.encoder.blocks) == layer and not any(
        name.startswith("norm") for name in model.encoder.state_dict()
    )
    assert torch.equal(whole.embed(noise(), layer=layer), expected)
    model.train()
    torch.nn.init.normal_(model.head[1].weight)
    model(noise()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("layer", "depth"), [([0, 3], 3), ([0, 2, None], 6)])
def test_several_blocks_are_read_side_by_side(layer, depth):
    whole = encoder().eval()
    model = AudioClassifier(whole, NAMES, layer, "mean_std").eval()
    assert torch.equal(model.embed(noise()), whole.embed(noise(), layer=layer, pooling="mean_std"))
    assert model.encoder.depth == depth and model(noise()).shape == (2, len(NAMES))
    model.train()
    torch.nn.init.normal_(model.head[1].weight)
    model(noise()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("layer", [None, 4])
def test_layer_decay_counts_from_the_block_that_is_read(layer):
    model = AudioClassifier(encoder(), NAMES, layer)
    rates = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in layer_groups(model, 1.0, 0.01, 0.5):
        rates |= {names[id(parameter)]: group["lr"] for parameter in group["params"]}
    depth = layer or 6
    assert rates["head.1.weight"] == 1.0 and rates["encoder.patch_embed.proj.weight"] == 0.5 ** (depth + 1)
    for block in range(depth):
        assert rates[f"encoder.blocks.{block}.attn.qkv.weight"] == 0.5 ** (depth - block)
    assert set(rates) == set(names.values())


def test_drop_path_reaches_its_rate_in_the_block_that_is_read():
    def rates(network):
        return [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks]

    assert rates(AudioClassifier(encoder(6, 0.3), NAMES, 4).encoder) == pytest.approx(rates(encoder(4, 0.3)))


def test_a_checkpoint_with_all_blocks_loads_and_a_cut_one_is_refused_where_the_rest_is_needed(tmp_path):
    model = AudioClassifier(encoder(), NAMES, 4).eval()
    complete = encoder()
    save_encoder(complete, tmp_path / "all", classifier=model)  # as earlier versions stored it
    save_encoder(model.encoder, tmp_path / "cut", classifier=model)
    assert read_checkpoint(tmp_path / "all").architecture["depth"] == 6
    for name in ("all", "cut"):
        assert torch.equal(load_classifier(tmp_path / name)(noise()), model(noise()))
    assert torch.equal(load_encoder(tmp_path / "cut").embed(noise()), model.embed(noise()))
    with pytest.raises(UserError, match="cut at block 4"):
        arguments_of(read_checkpoint(tmp_path / "cut").architecture)
    mae = create_mae("tiny", device="meta")
    save_encoder(AudioViT(192, 12, 3).cut(12), tmp_path / "tiny")
    with pytest.raises(UserError, match="was cut at the block"):
        start_from(mae, str(tmp_path / "tiny"))


def module_of(model: AudioClassifier, counts=None, **settings) -> AudioClassification:
    return AudioClassification(model, ClassifyConfig(method="finetune", **settings), None, counts)


def test_smoothing_gives_a_rare_class_no_more_than_its_share():
    """200 clips of one class, 5 of the other: the best probabilities for a clip are the smoothed label's."""
    counts, smoothing = [200, 5], 0.1
    for label in (0, 1):
        module = module_of(
            AudioClassifier(encoder(1), ["a", "b"]), counts, balanced="weights", label_smoothing=smoothing
        )
        logits = torch.zeros(1, 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")
        target = torch.eye(2)[[label]]

        def step(module=module, logits=logits, optimizer=optimizer, target=target):
            optimizer.zero_grad()
            loss = module.loss(logits, target)
            loss.backward()
            return loss

        optimizer.step(step)
        assert float(logits.detach().softmax(1)[0, label]) == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_each_clip_weighs_as_its_class(smoothing):
    module = module_of(AudioClassifier(encoder(1), NAMES), [8, 4, 1], balanced="weights", label_smoothing=smoothing)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    each = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    expected = (each * module.class_weights[labels]).mean()
    torch.testing.assert_close(module.loss(logits, torch.eye(3)[labels]), expected)
    torch.testing.assert_close(module.class_weights[0] * 8, module.class_weights[2])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_classes_are_smoothed_toward_a_half_with_the_weight_of_their_label(smoothing):
    module = module_of(
        AudioClassifier(encoder(1), NAMES, multi=True), [8, 4, 1], balanced="weights", label_smoothing=smoothing
    )
    logits, target = torch.randn(6, 3), torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    target[0, 2] = 1
    each = binary_cross_entropy_with_logits(logits, target * (1 - smoothing) + smoothing / 2, reduction="none")
    expected = torch.where(target > 0, each * module.class_weights, each).mean()
    torch.testing.assert_close(module.loss(logits, target), expected)
    mixed = 0.3 * target + 0.7 * target.flip(0)  # mixup: the mean of both losses
    parts = 0.3 * module.loss(logits, target) + 0.7 * module.loss(logits, target.flip(0))
    torch.testing.assert_close(module.loss(logits, mixed), parts)
    unsmoothed = binary_cross_entropy_with_logits(logits, target, pos_weight=module.class_weights)
    torch.testing.assert_close(module.eval().loss(logits, target), unsmoothed)


def test_masks_write_what_the_batch_norm_maps_to_the_mean():
    settings = AugmentConfig(mask_bands=30, mask_frames=40)
    module = module_of(AudioClassifier(encoder(1), NAMES), augment=settings)
    norm = module.model.encoder.init_bn.eval()
    torch.nn.init.normal_(norm.running_mean, -30, 10)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    log_mel, _ = LogMel()(noise(1.0, 2))
    torch.manual_seed(1)
    masked = norm(log_mel)
    unmasked = type(norm).forward(norm, log_mel)
    module.masks.eval()
    assert torch.equal(norm(log_mel), unmasked)
    changed = masked != unmasked
    assert 0 < changed.float().mean() < 1
    assert torch.allclose(masked[changed], norm.bias[:, None].expand_as(masked)[changed], atol=TOLERANCE)
    module.masks.train()
    bands = SpecAugment(30, 40)(log_mel, norm.running_mean)
    assert torch.equal(bands[bands != log_mel].unique(), norm.running_mean[(bands != log_mel).any(2).any(0)].unique())


def adapted(base: AudioViT, layer=None) -> AudioClassifier:
    """With adapters that are not zero, and a head."""
    model = AudioClassifier(base, NAMES, layer).eval()
    add_adapters(model.encoder, 2, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.startswith("head."):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize("layer", [None, 3])
def test_merged_and_separate_adapters_equal_the_adapted_network(tmp_path, layer):
    pytest.importorskip("peft")
    save_encoder(encoder(4), tmp_path / "base")
    model = adapted(load_encoder(tmp_path / "base"), layer)
    expected = model(noise()).detach()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    remove_adapters(model)
    assert not torch.allclose(model(noise()), expected, atol=1e-2)  # the adapters do something
    save_adapters(state, model, str(tmp_path / "base"), tmp_path / "adapters.safetensors")
    model.load_state_dict(merge(state))
    torch.testing.assert_close(model(noise()), expected, atol=TOLERANCE, rtol=0)
    save_encoder(model.encoder, tmp_path / "export", classifier=model)
    for path in (tmp_path / "export", tmp_path / "adapters.safetensors"):
        torch.testing.assert_close(load_classifier(path)(noise()), expected, atol=TOLERANCE, rtol=0)
    small, all_weights = (path.stat().st_size for path in (tmp_path / "adapters.safetensors",
                                                           tmp_path / "export/model.safetensors"))  # fmt: skip
    assert small < all_weights / 3


def test_adapters_on_another_encoder_or_a_damaged_file_are_refused(tmp_path):
    pytest.importorskip("peft")
    save_encoder(encoder(2), tmp_path / "base")
    model = adapted(encoder(2))
    state = model.state_dict()
    remove_adapters(model)
    file = tmp_path / "adapters.safetensors"
    save_adapters(state, model, str(tmp_path / "base"), file)
    load_classifier(file)
    other = encoder(2)
    other.init_bn.running_mean[0] += 1e-3
    (tmp_path / "base").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_classifier(file)
    save_encoder(other, tmp_path / "base")
    with pytest.raises(UserError, match="was trained on another encoder"):
        load_classifier(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        load_classifier(file)
    with pytest.raises(UserError, match="holds no adapters"):
        load_encoder(tmp_path / "kept/model.safetensors")


def test_adapters_need_blocks():
    pytest.importorskip("peft")
    with pytest.raises(UserError, match=r"classify\.layer=0"):
        add_adapters(AudioClassifier(encoder(2), NAMES, 0).encoder, 2, seed=0)


def test_a_checkpoint_holds_base_weights_and_adapters_apart():
    """A resumed run takes both from it; a network without adapters takes the sum."""
    pytest.importorskip("peft")
    trained = module_of(adapted(encoder(2)), lora_rank=2)
    state = copy.deepcopy(trained.state_dict())
    resumed = module_of(adapted(encoder(2, seed=5)), lora_rank=2)  # as if init_from had changed
    checkpoint = {"state_dict": dict(state)}
    resumed.on_load_checkpoint(checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(resumed.eval().model(noise()), trained.eval().model(noise()))
    plain = module_of(AudioClassifier(encoder(2, seed=5), NAMES), lora_rank=2)
    checkpoint = {"state_dict": dict(state)}
    plain.on_load_checkpoint(checkpoint)
    plain.load_state_dict(checkpoint["state_dict"])
    assert not has_adapters(plain)
    np.testing.assert_allclose(plain.eval().model(noise()).detach(), trained.model(noise()).detach(), atol=TOLERANCE)
