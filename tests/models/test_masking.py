"""Masks are exact, whole groups, never padding, uniform over positions, and a pure function of each clip's seed."""

import pytest
import torch

from src.models.decoder import Decoder
from src.models.masking import Mask, group_mask, hash_noise

# 4.5 standard deviations: with fixed seeds and up to 5,000 comparisons, chance alone stays below
MAX_Z = 4.5
RATIOS = [0.0, 0.3, 0.5, 0.75, 0.9, 0.99]


def valid_of(num_tokens: list[int]) -> torch.Tensor:
    return torch.arange(max(num_tokens)) < torch.tensor(num_tokens)[:, None]


def kept_of(num_tokens: int, mask_ratio: float) -> int:
    """Visible tokens, in integer arithmetic, so that the ratio is not rounded."""
    return max(1, num_tokens * (100 - round(100 * mask_ratio)) // 100)


@pytest.mark.parametrize("mask_ratio", RATIOS)
@pytest.mark.parametrize("group_size", [1, 2, 3, 5])
def test_the_share_is_exact(mask_ratio, group_size):
    num_tokens = list(range(1, 253))
    valid = valid_of(num_tokens)
    mask = group_mask(torch.arange(252), 252, valid, mask_ratio, group_size)
    seen = (~mask.mask & valid).sum(1)
    assert seen.tolist() == [kept_of(n, mask_ratio) for n in num_tokens]
    assert mask.visible.shape[1] == kept_of(252, mask_ratio)


@pytest.mark.parametrize("num_tokens", [1, 25, 36, 250, 252])
def test_the_share_is_exact_without_padding(num_tokens):
    mask = group_mask(torch.arange(20), num_tokens, None)
    assert ((~mask.mask).sum(1) == kept_of(num_tokens, 0.75)).all()
    assert mask.visible_valid is None


@pytest.mark.parametrize("group_size", [2, 3, 5])
@pytest.mark.parametrize("num_tokens", [24, 25, 62, 250])
def test_groups_stay_together(group_size, num_tokens):
    """All but the last visible group, which is cut if the number of visible tokens requires it."""
    mask = group_mask(torch.arange(200), num_tokens, None, 0.75, group_size).mask
    pieces = mask.split(group_size, dim=1)
    cut = torch.stack([piece.any(1) & ~piece.all(1) for piece in pieces]).sum(0)
    assert cut.max() <= 1
    whole_groups_fit = num_tokens % group_size == 0 and kept_of(num_tokens, 0.75) % group_size == 0
    if whole_groups_fit:
        assert cut.max() == 0


@pytest.mark.parametrize("mask_ratio", RATIOS)
def test_padding_is_neither_masked_nor_visible(mask_ratio):
    num_tokens = [1, 2, 3, 7, 40, 99, 100]
    valid = valid_of(num_tokens)
    for first_seed in range(0, 140, 7):
        mask = group_mask(torch.arange(7) + first_seed, 100, valid, mask_ratio)
        assert not (mask.mask & ~valid).any()
        for row in range(7):
            visible = mask.visible[row, mask.visible_valid[row]].tolist()
            assert sorted(visible) == (~mask.mask[row] & valid[row]).nonzero().flatten().tolist()
            assert len(visible) >= 1


def test_surplus_entries_of_shorter_clips_come_last():
    mask = group_mask(torch.arange(3), 100, valid_of([100, 40, 3]))
    assert mask.visible_valid.sum(1).tolist() == [25, 10, 1]
    assert torch.equal(mask.visible_valid, mask.visible_valid.sort(dim=1, descending=True, stable=True).values)
    assert all(row.unique().numel() == row.numel() for row in mask.visible)


def test_a_clips_mask_depends_on_its_seed_and_length_only():
    num_tokens = [250, 36, 1, 9, 120]
    seeds = torch.tensor([5, -3, 2**62 - 1, 0, 7_000_000_000])
    together = group_mask(seeds, 250, valid_of(num_tokens))
    for row, (seed, n) in enumerate(zip(seeds, num_tokens, strict=True)):
        alone = group_mask(seed[None], n, None)
        assert torch.equal(together.mask[row, :n], alone.mask[0])
        kept = alone.visible.shape[1]
        assert torch.equal(together.visible[row, :kept], alone.visible[0])
    reordered = group_mask(seeds.flip(0), 250, valid_of(num_tokens).flip(0))
    assert torch.equal(reordered.mask.flip(0), together.mask)


def test_every_position_is_visible_equally_often():
    """And every pair of groups: 20,000 consecutive seeds, 48 tokens, 6 of 24 groups visible."""
    draws = 20_000
    seen = (~group_mask(torch.arange(draws), 48, None).mask)[:, ::2].double()  # groups
    share = 6 / 24
    z = (seen.mean(0) - share) / (share * (1 - share) / draws) ** 0.5
    assert z.abs().max() < MAX_Z
    first, second = torch.triu_indices(24, 24, offset=1)
    pairs = (seen.T @ seen / draws)[first, second]
    share = 6 * 5 / (24 * 23)
    z = (pairs - share) / (share * (1 - share) / draws) ** 0.5
    assert z.abs().max() < MAX_Z


def test_hash_noise_is_uniform_and_independent():
    """Over consecutive seeds, consecutive indices, and seeds that differ in their upper 32 bits only."""
    count = 100_000
    plain = torch.arange(count)
    sequences = {
        "seeds": hash_noise(plain, torch.tensor(0)),
        "seeds, another index": hash_noise(plain, torch.tensor(1)),
        "indices": hash_noise(torch.tensor(1234), plain),
        "upper halves": hash_noise(plain << 32, torch.tensor(0)),
        "negative seeds": hash_noise(-1 - plain, torch.tensor(0)),
    }
    for name, noise in sequences.items():
        assert noise.min() >= 0 and noise.max() < 1, name
        quantile = torch.arange(count).double() / count
        distance = (noise.sort().values - quantile).abs().max()
        assert distance < 2.0 / count**0.5, name  # Kolmogorov-Smirnov: p = 0.07 %
        for lag in (1, 2, 64):
            correlation = torch.corrcoef(torch.stack([noise[lag:], noise[:-lag]]))[0, 1]
            assert correlation.abs() < MAX_Z / count**0.5, (name, lag)
    for first, second in [("seeds", "seeds, another index"), ("seeds", "upper halves"), ("seeds", "negative seeds")]:
        correlation = torch.corrcoef(torch.stack([sequences[first], sequences[second]]))[0, 1]
        assert correlation.abs() < MAX_Z / count**0.5, (first, second)


def test_hash_noise_does_not_change_between_versions():
    """So that a resumed run draws the same masks."""
    result = hash_noise(torch.tensor([0, 1, 2**40, -1])[:, None], torch.tensor([0, 125])) * 2**24
    assert result.long().tolist() == [[9620015, 542413], [5268795, 5931051], [3932073, 15707056], [3921496, 5871937]]


def test_unmasking_is_the_identity():
    """The decoder's blocks get each visible token at its own position and the mask token everywhere else."""
    torch.manual_seed(0)
    decoder = Decoder(12, 8, 1, 2, max_tokens=40)
    decoder.mask_token.data.normal_(), decoder.pos_embed.data.normal_()
    inputs = []

    class Record(torch.nn.Module):
        def forward(self, tokens, attended):
            inputs.append(tokens)
            return tokens

    decoder.blocks = torch.nn.ModuleList([Record()])
    num_tokens = [40, 1, 17, 30]
    for valid in (None, valid_of(num_tokens)):
        inputs.clear()
        mask: Mask = group_mask(torch.arange(4), 40, valid)
        all_tokens = torch.randn(4, 40, 12)
        latent = all_tokens.gather(1, mask.visible[..., None].expand(-1, -1, 12))
        output = decoder(latent, mask, valid)
        seen = ~mask.mask if valid is None else ~mask.mask & valid
        expected = torch.where(seen[..., None], decoder.input_proj(all_tokens), decoder.mask_token)
        torch.testing.assert_close(inputs[0], expected + decoder.pos_embed)
        torch.testing.assert_close(output, decoder.outputlayer(decoder.norm(inputs[0]))[mask.mask])
