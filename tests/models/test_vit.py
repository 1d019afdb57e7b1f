"""A clip gets the same tokens alone, padded, next to a loud clip, and in chunks when it is long."""

import pytest
import torch
from torch import nn

from src.models import SIZES, create_encoder
from src.models.vit import AudioViT, pool
from tests.models.batches import pad_batch

TOLERANCE = 1e-5

PARAMETERS = {"tiny": 5_436_800, "small": 21_490_304, "base": 85_447_808, "0.6b": 630_333_568, "1.2b": 1_134_047_360}


def count_by_hand(width: int, depth: int) -> int:
    """Blocks; positions, patch embedding and last norm; batch norm."""
    return depth * (12 * width**2 + 13 * width) + (253 + 257 + 2) * width + 128


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count(size):
    encoder = create_encoder(size, device="meta")
    shape = SIZES[size].encoder
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[size]
    assert count_by_hand(shape.width, shape.depth) == PARAMETERS[size]
    assert (encoder.embed_dim, encoder.depth, len(encoder.blocks)) == (shape.width, shape.depth, shape.depth)
    assert {block.attn.num_heads for block in encoder.blocks} == {shape.num_heads}


def test_state_dict_names_are_timms_and_the_official_ones():
    block = [f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")]
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    block += [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    expected = {f"blocks.{i}.{name}" for i in range(3) for name in block}
    expected |= {f"init_bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    expected |= {"time_pos_embed", "freq_pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    expected |= {"norm.weight", "norm.bias"}
    weights = AudioViT(48, 3, 4).state_dict()
    assert set(weights) == expected
    assert weights["patch_embed.proj.weight"].shape == (48, 1, 64, 4)
    assert weights["time_pos_embed"].shape == (1, 48, 1, 252)
    assert weights["freq_pos_embed"].shape == (1, 48, 1, 1)


def test_rate_and_hop(small_encoder):
    assert small_encoder.sample_rate == 16000
    assert small_encoder.hop_seconds == 0.04


@pytest.mark.parametrize(
    "num_samples, num_tokens",
    [(1, 1), (160, 1), (800, 1), (1119, 1), (1120, 2), (16000, 25), (160000, 250), (161120, 252)],
)
def test_num_tokens(small_encoder, num_samples, num_tokens):
    assert small_encoder.num_tokens(num_samples) == num_tokens
    assert small_encoder.num_tokens(torch.tensor([num_samples])).tolist() == [num_tokens]
    assert small_encoder(torch.zeros(1, num_samples)).shape == (1, num_tokens, 48)


SECONDS = [1 / 16000, 0.01, 0.05, 0.051, 0.4, 2.5, 10.07, 10.08, 20.0, 30.24, 31.0]


@pytest.fixture(scope="module")
def mixed(long_audio) -> list[torch.Tensor]:
    """Clips of the lengths in SECONDS, each with different audio."""
    cut = [long_audio.roll(-7919 * i)[: round(seconds * 16000)] for i, seconds in enumerate(SECONDS)]
    assert all(clip.abs().max() > 0 for clip in cut)
    return cut


@torch.no_grad()
def check_rows(encoder: AudioViT, clips: list[torch.Tensor], waveform: torch.Tensor, length: torch.Tensor) -> None:
    together, embedding = encoder(waveform, length), encoder.embed(waveform, length)
    for clip, row, vector in zip(clips, together, embedding, strict=True):
        alone = encoder(clip[None])[0]
        assert len(alone) == encoder.num_tokens(len(clip))
        assert (row[: len(alone)] - alone).abs().max() <= TOLERANCE
        assert not row[len(alone) :].any()
        assert (vector - alone.mean(0)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("padding", [0.0, None], ids=["zeros", "noise"])
def test_a_clip_is_the_same_alone_and_in_a_batch_of_any_lengths(small_encoder, mixed, padding):
    check_rows(small_encoder, mixed, *pad_batch(mixed, padding, surplus=3333))


def test_chunks_beyond_a_short_clip_are_zeros_without_fused_attention_too(small_encoder, long_audio):
    """With every token of a row masked, only fused attention returns finite numbers by itself."""
    for block in small_encoder.blocks:
        block.attn.fused_attn = False
    batch = [long_audio[: 12 * 16000], long_audio[16000:32000]]
    check_rows(small_encoder, batch, *pad_batch(batch))


def test_a_clip_is_the_same_next_to_a_loud_one(small_encoder, clips):
    batch = [clips[0] * 1e-3, clips[1] * 1e3, clips[2]]
    check_rows(small_encoder, batch, *pad_batch(batch))


def test_a_clip_is_the_same_in_a_batch_with_tiny(clips):
    check_rows(create_encoder("tiny").eval(), clips[:4], *pad_batch(clips[:4]))


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.01, 1.0, 20.0])
def test_the_embedding_of_a_clip_alone_is_the_mean_of_its_tokens(small_encoder, long_audio, seconds):
    waveform = long_audio[None, : round(seconds * 16000)]
    assert (small_encoder.embed(waveform) - small_encoder(waveform).mean(1)).abs().max() <= TOLERANCE


@torch.no_grad()
def test_positions_restart_in_every_chunk(small_encoder):
    """Tokens of silence differ by position only."""
    tokens = small_encoder(torch.zeros(1, 2 * 252 * 640))[0]
    assert len(tokens) == 504
    assert (tokens[:252] - tokens[252:]).abs().max() <= TOLERANCE
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2


@torch.no_grad()
def test_a_token_depends_on_its_own_chunk_only(small_encoder, long_audio):
    """Changing the first second changes tokens of the first chunk, not of the second."""
    waveform = long_audio[None, : 20 * 16000].clone()
    before = small_encoder(waveform)[0]
    waveform[:, :16000] = waveform[:, :16000].flip(1)
    after = small_encoder(waveform)[0]
    assert (before - after)[252:].abs().max() <= TOLERANCE
    assert (before - after)[240:252].abs().max() > 1e-3


@torch.no_grad()
def test_layers_are_the_blocks_outputs(small_encoder, clips):
    waveform, length = pad_batch(clips[:4])
    outputs = []
    for block in small_encoder.blocks:
        block.register_forward_hook(lambda block, arguments, output: outputs.append(output))
    last = small_encoder(waveform, length)
    valid = torch.arange(last.shape[1]) < small_encoder.num_tokens(length)[:, None]
    expected = [output * valid[..., None] for output in outputs]
    for layer in (1, 2, 3):
        assert torch.equal(small_encoder(waveform, length, layer=layer), expected[layer - 1])
    assert torch.equal(small_encoder.norm(outputs[2]) * valid[..., None], last)
    first = small_encoder(waveform, length, layer=0)
    patches = small_encoder.tokenize(waveform, length)[0]
    by_convolution = small_encoder.patch_embed.proj(patches.unflatten(2, (64, 4)).transpose(1, 2).flatten(2)[:, None])
    positions = small_encoder.time_pos_embed + small_encoder.freq_pos_embed
    by_convolution = (by_convolution + positions[..., : first.shape[1]]).flatten(2).transpose(1, 2)
    assert (by_convolution * valid[..., None] - first).abs().max() <= TOLERANCE


def test_a_layer_that_does_not_exist_is_refused(small_encoder):
    with pytest.raises(AssertionError, match="layer 4 is not in 0 to 3"):
        small_encoder(torch.zeros(1, 16000), layer=4)


def test_pooling_counts_real_tokens_only():
    tokens = torch.randn(3, 7, 5)
    num_tokens = torch.tensor([7, 3, 1])
    mean, both = pool(tokens, num_tokens), pool(tokens, num_tokens, "mean_std")
    for row, count in enumerate(num_tokens):
        torch.testing.assert_close(mean[row], tokens[row, :count].mean(0))
        expected = torch.cat([tokens[row, :count].mean(0), tokens[row, :count].std(0, correction=0)])
        torch.testing.assert_close(both[row], expected, atol=2e-6, rtol=1e-5)


def test_deviation_of_one_token_has_a_finite_gradient():
    tokens = torch.randn(2, 4, 5, requires_grad=True)
    pool(tokens, torch.tensor([1, 4]), "mean_std").sum().backward()
    assert tokens.grad.isfinite().all()


@torch.no_grad()
def test_embed_takes_layer_and_pooling(small_encoder, clips):
    waveform, length = pad_batch(clips[:3])
    result = small_encoder.embed(waveform, length, layer=2, pooling="mean_std")
    tokens = small_encoder(waveform, length, layer=2)
    assert torch.equal(result, pool(tokens, small_encoder.num_tokens(length), "mean_std"))
    assert result.shape == (3, 96)


def gradients(encoder: AudioViT, waveform, length, recompute: bool) -> tuple[list[torch.Tensor], int]:
    """Gradients of the parameters, and how often the first block ran."""
    calls = []
    handle = encoder.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    encoder.gradient_checkpointing = recompute
    encoder.zero_grad()
    torch.manual_seed(3)
    encoder.embed(waveform, length).square().sum().backward()
    handle.remove()
    return [parameter.grad.clone() for parameter in encoder.parameters()], len(calls)


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(clips):
    waveform, length = pad_batch(clips[:3])
    encoder = create_encoder("tiny", drop_path=0.3).train()
    plain, calls = gradients(encoder, waveform, length, recompute=False)
    recomputed, calls_recomputed = gradients(encoder, waveform, length, recompute=True)
    assert (calls, calls_recomputed) == (1, 2)
    torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-6)
    assert create_encoder("tiny", gradient_checkpointing=True, device="meta").gradient_checkpointing


def test_drop_path_rises_from_the_first_block_to_the_last(clips):
    encoder = create_encoder("tiny", drop_path=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.5 * i / 11 for i in range(12)])
    waveform = clips[0][None]
    with torch.no_grad():
        encoder.train()
        assert torch.equal(encoder(waveform, layer=1), encoder(waveform, layer=1))
        assert not torch.equal(encoder(waveform), encoder(waveform))
        encoder.eval()
        assert torch.equal(encoder(waveform), encoder(waveform))
        plain = create_encoder("tiny").train()
        assert torch.equal(plain(waveform), plain(waveform))


@torch.no_grad()
def test_layer_scale_starts_every_block_near_the_identity(clips):
    encoder = create_encoder("tiny", layer_scale=1e-6).eval()
    gammas = [gamma for block in encoder.blocks for gamma in (block.ls1.gamma, block.ls2.gamma)]
    assert all((gamma == 1e-6).all() for gamma in gammas)
    waveform = clips[0][None]
    assert (encoder(waveform, layer=12) - encoder(waveform, layer=0)).abs().max() < 1e-3
    plain = create_encoder("tiny").eval()
    assert (plain(waveform, layer=12) - plain(waveform, layer=0)).abs().max() > 0.1
    assert isinstance(plain.blocks[0].ls1, nn.Identity)


@torch.no_grad()
def test_the_front_end_stays_in_fp32_under_autocast(small_encoder, clips):
    waveform, length = pad_batch(clips[:3])
    patches, decibel, _ = small_encoder.tokenize(waveform, length)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, result_decibel, _ = small_encoder.tokenize(waveform, length)
    assert torch.equal(result, patches)
    assert torch.equal(result_decibel, decibel)
