"""The objective: masked real tokens are predicted from visible ones; nothing else enters the loss."""

import pytest
import torch
import torchaudio.transforms as AT
from torch import nn

from src.models import SIZES, create_mae
from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder, normalize_patches
from src.models.vit import AudioViT
from tests.models.batches import pad_batch

TOLERANCE = 1e-5
DECODER_PARAMETERS = {"tiny": 1_914_880, "small": 3_388_672, "base": 25_874_688, "0.6b": 26_136_832, "1.2b": 58_276_096}


@pytest.mark.parametrize("size", SIZES)
def test_decoder_parameter_count(size):
    decoder = create_mae(size, device="meta").decoder
    (encoder_width, *_), (width, depth, num_heads) = SIZES[size]
    blocks, ends = depth * (12 * width**2 + 13 * width), (encoder_width + 1) * width + (width + 1) * 256
    by_hand = blocks + ends + (1 + 252 + 2) * width  # mask token, positions, norm
    assert sum(parameter.numel() for parameter in decoder.parameters()) == DECODER_PARAMETERS[size] == by_hand
    assert {block.attn.num_heads for block in decoder.blocks} == {num_heads}


@torch.no_grad()
def test_targets_are_the_masked_patches_normalized(small_mae, clips):
    """Against torchaudio and a plain loop over the mask."""
    clip = next(clip for clip in clips if len(clip) > 16000)
    output = small_mae(clip[None], seeds=torch.tensor([3]))
    mel = AT.MelSpectrogram(sample_rate=16000, n_fft=512, hop_length=160, f_min=0, f_max=8000, n_mels=64)
    decibel = AT.AmplitudeToDB(top_db=120)(mel(clip))
    for row, token in enumerate(output.mask[0].nonzero().flatten().tolist()):
        patch = decibel[:, 4 * token : 4 * token + 4].flatten()
        expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        assert (output.target[row] - expected).abs().max() <= 1e-4
        torch.testing.assert_close(output.target[row] * output.deviation[row] + output.mean[row], patch)


@torch.no_grad()
def test_the_loss_is_the_mean_over_masked_real_tokens(small_mae, clips):
    waveform, length = pad_batch(clips[:8])
    output = small_mae(waveform, length, torch.arange(8))
    num_tokens = small_mae.encoder.num_tokens(length)
    hidden = sum(int(n) - max(1, int(n) // 4) for n in num_tokens)
    assert output.prediction.shape == output.target.shape == (hidden, 256)
    assert output.mask.sum() == hidden
    assert not output.mask[torch.arange(output.mask.shape[1]) >= num_tokens[:, None]].any()
    assert output.loss == pytest.approx(float(nn.functional.mse_loss(output.prediction, output.target)), abs=TOLERANCE)


@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_enter_the_loss(small_mae, clips, training):
    """Nor, in training mode, the batch statistics."""
    seeds = torch.arange(8)
    losses, gradients = [], []
    for padding, surplus in [(0.0, 0), (None, 0), (0.0, 9000)]:
        small_mae.train(training).zero_grad()
        output = small_mae(*pad_batch(clips[:8], padding, surplus), seeds)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in small_mae.parameters()]))
    assert losses == pytest.approx(losses[:1] * 3, abs=TOLERANCE)
    assert all((gradient - gradients[0]).abs().max() <= TOLERANCE for gradient in gradients)


@torch.no_grad()
def test_a_padded_batch_is_the_weighted_mean_of_its_clips_alone(small_mae, clips):
    batch = [
        clip[:num_samples] for clip, num_samples in zip(clips, [40000, 20000, 16000, 8000, 1700, 700], strict=False)
    ]
    seeds = torch.tensor([11, -5, 2**61, 0, 3, 4])
    waveform, length = pad_batch(batch)
    together = small_mae(waveform, length, seeds)
    alone = [small_mae(clip[None], seeds=seed[None]) for clip, seed in zip(batch, seeds, strict=True)]
    counts = [len(output.prediction) for output in alone]
    assert counts[-1] == 0  # its one token stays visible: nothing to predict, and no NaN
    expected = sum(output.loss * count for output, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together.loss == pytest.approx(float(expected), abs=TOLERANCE)
    assert (together.prediction - torch.cat([output.prediction for output in alone])).abs().max() <= TOLERANCE
    # targets near silence are divided by a small deviation
    torch.testing.assert_close(together.target, torch.cat([output.target for output in alone]), rtol=1e-4, atol=1e-4)
    for output, row in zip(alone, together.mask, strict=True):
        assert torch.equal(output.mask[0], row[: output.mask.shape[1]])


@torch.no_grad()
def test_predictions_depend_on_visible_tokens_only_and_targets_on_masked_ones_only(small_mae, clips):
    waveform, length = pad_batch(clips[:6])
    seeds = torch.arange(6)
    before = small_mae(waveform, length, seeds)
    tokenize = small_mae.encoder.tokenize

    def other(at: torch.Tensor):
        def tokenize_otherwise(waveform, length):
            patches, decibel, valid = tokenize(waveform, length)
            change = 10 * torch.randn(patches.shape) * at[..., None]
            return patches + change, decibel + change, valid

        small_mae.encoder.tokenize = tokenize_otherwise
        output = small_mae(waveform, length, seeds)
        small_mae.encoder.tokenize = tokenize
        return output

    num_tokens = small_mae.encoder.num_tokens(length)
    valid = torch.arange(before.mask.shape[1]) < num_tokens[:, None]
    hidden, visible, padding = other(before.mask), other(~before.mask & valid), other(~valid)
    assert torch.equal(hidden.prediction, before.prediction)
    assert not torch.equal(hidden.target, before.target)
    assert torch.equal(visible.target, before.target)
    assert not torch.equal(visible.prediction, before.prediction)
    assert (padding.prediction - before.prediction).abs().max() <= TOLERANCE
    assert torch.equal(padding.target, before.target)


def test_rows_of_the_prediction_belong_to_mask_nonzero(small_mae, clips):
    """Without blocks to mix tokens, the gradient of a row reaches only that token's position in the decoder."""
    small_mae.decoder.blocks = nn.ModuleList()
    clip = next(clip for clip in clips if len(clip) > 16000)
    output = small_mae(clip[None], seeds=torch.tensor([1]))
    tokens = output.mask.nonzero()[:, 1]
    for row in (0, 3, len(tokens) - 1):
        (gradient,) = torch.autograd.grad(output.prediction[row].sum(), small_mae.decoder.pos_embed, retain_graph=True)
        assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [tokens[row]]


def test_the_gradient_reaches_every_parameter(small_mae, clips):
    waveform, length = pad_batch(clips[:8])
    small_mae.train()(waveform, length, torch.arange(8)).loss.backward()
    for name, parameter in small_mae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_nothing_masked_gives_zero_loss_and_no_nan(small_mae):
    """Every clip has a single token, which stays visible."""
    output = small_mae(torch.rand(2, 800), seeds=torch.arange(2))
    assert output.loss == 0 and output.prediction.shape == (0, 256)
    output.loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in small_mae.parameters())


@torch.no_grad()
def test_full_lengths_equal_no_lengths(small_mae, long_audio):
    waveform = long_audio[: 3 * 16000].reshape(3, 16000)
    seeds = torch.arange(3)
    with_length = small_mae(waveform, torch.full((3,), 16000), seeds)
    without = small_mae(waveform, None, seeds)
    assert torch.equal(with_length.loss, without.loss)
    assert torch.equal(with_length.prediction, without.prediction)


@torch.no_grad()
def test_masks_follow_the_seeds(small_mae, long_audio):
    waveform = long_audio[: 4 * 16000].reshape(4, 16000)

    def mask(seeds=None):
        return small_mae(waveform, seeds=seeds).mask

    assert torch.equal(mask(torch.arange(4)), mask(torch.arange(4)))
    assert not torch.equal(mask(torch.arange(4)), mask(torch.arange(4, 8)))
    torch.manual_seed(0)
    first, second = mask(), mask()
    assert not torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 1
    torch.manual_seed(0)
    assert torch.equal(mask(), first)


@torch.no_grad()
@pytest.mark.parametrize("mask_ratio, kept", [(0.0, 25), (0.5, 12), (0.9, 2)])
def test_ratio_and_group_reach_the_mask(long_audio, mask_ratio, kept):
    mae = create_mae("tiny", mask_ratio=mask_ratio, mask_group=1)
    output = mae(long_audio[None, :16000], seeds=torch.tensor([0]))
    assert (~output.mask).sum() == kept
    pairs = []
    for group in (1, 2):
        mae = create_mae("tiny", mask_ratio=0.5, mask_group=group)
        mask = mae(long_audio[None, :30720], seeds=torch.tensor([0])).mask[0]
        pairs.append(mask.unflatten(0, (-1, 2)))
    single, double = pairs
    assert (double[:, 0] == double[:, 1]).all()
    assert not (single[:, 0] == single[:, 1]).all()


def test_normalized_patches_have_mean_0_and_deviation_1():
    patches = torch.randn(5, 256) * 7 - 40
    normalized, mean, deviation = normalize_patches(patches)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(5), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(normalized.std(1), torch.ones(5))
    torch.testing.assert_close(normalized * deviation + mean, patches)
    assert not normalize_patches(torch.full((1, 256), -100.0))[0].any()


def test_a_clip_longer_than_the_time_table_is_refused(small_mae):
    small_mae(torch.zeros(1, 161_280), seeds=torch.tensor([0]))
    with pytest.raises(AssertionError, match="crop it"):
        small_mae(torch.zeros(1, 162_000), seeds=torch.tensor([0]))


def test_bf16_autocast_trains(small_mae, clips):
    waveform, length = pad_batch(clips[:4])
    expected = float(small_mae(waveform, length, torch.arange(4)).loss.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = small_mae(waveform, length, torch.arange(4))
    output.loss.backward()
    assert output.loss.dtype == output.target.dtype == output.prediction.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(expected, rel=0.02)
    assert all(parameter.grad.isfinite().all() for parameter in small_mae.parameters())


def test_a_few_steps_beat_predicting_the_mean(clips):
    """The loss on masks not seen in training; a constant prediction scores 255/256."""
    decoder = Decoder(64, 64, 1, 4)
    initialize(decoder, 0, "decoder")
    encoder = AudioViT(64, 2, 4)
    initialize(encoder, 0, "encoder")
    mae = MaskedAutoencoder(encoder, decoder).train()
    optimizer = torch.optim.AdamW(mae.parameters(), lr=3e-3, betas=(0.9, 0.95))
    waveform, length = pad_batch([clip[:16000] for clip in clips[:16]], padding=0.0)
    first = float(mae(waveform, length, torch.arange(16)).loss.detach())
    for step in range(30):
        mae(waveform, length, torch.arange(16) + 16 * step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    last = float(mae(waveform, length, torch.arange(16) - 16).loss.detach())
    assert last < 0.8 * first
    assert last < 0.8
