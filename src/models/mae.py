"""Masked autoencoding of log-mel tokens: the encoder sees a quarter of them, the decoder predicts the rest.

Dasheng, section 2, after He et al. (2022).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.models.decoder import Decoder
from src.models.masking import count_masked, group_mask
from src.models.vit import AudioViT


class MAEOutput(NamedTuple):
    """loss: scalar, mean over the M masked tokens. prediction, target: (M, P), normalized patches in the order of
    `mask.nonzero()`. mask: (B, N) bool. mean, deviation: (M, 1) in dB, used to normalize the target."""

    loss: Tensor
    prediction: Tensor
    target: Tensor
    mask: Tensor
    mean: Tensor
    deviation: Tensor


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder with the paper's objective.

    Args:
        mask_ratio: fraction of each clip's tokens that is masked.
        mask_group: number of adjacent tokens masked together.
    """

    def __init__(self, encoder: AudioViT, decoder: Decoder, mask_ratio: float = 0.75, mask_group: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.mask_ratio, self.mask_group = mask_ratio, mask_group

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values from which `src.models.build_mae` makes a network that these weights fit."""
        return {
            "encoder": self.encoder.architecture,
            "decoder": self.decoder.architecture,
            "mask_ratio": self.mask_ratio,
            "mask_group": self.mask_group,
        }

    def forward(
        self, waveform: Tensor, length: Tensor | Sequence[int] | None = None, seeds: Tensor | None = None
    ) -> MAEOutput:
        """Mask, encode, decode, compute the loss. Nothing waits for a GPU, unless `length` is a tensor on it.

        Args:
            waveform: (B, T), no longer than the encoder's time table (10.08 s).
            length: (B,) samples per clip, best as a list; None when no row is padded.
            seeds: (B,) integers that determine each clip's mask on any device; None draws them at random.
        """
        if seeds is None:
            seeds = torch.randint(2**62, (len(waveform),), device=waveform.device)
        samples = length.tolist() if isinstance(length, Tensor) else length
        patches, patches_db, valid = self.encoder.tokenize(waveform, samples)
        assert patches.shape[1] <= self.encoder.max_tokens, "the clip is longer than the time table; crop it"
        mask = group_mask(
            seeds, patches.shape[1], valid, self.mask_ratio, self.mask_group, self.num_masked(waveform, samples)
        )

        tokens = self.encoder.patch_embed(_take(patches, mask.visible))
        positions = _take(self.encoder.positions().expand(len(patches), -1, -1), mask.visible)
        # Under autocast, positions in fp32 would make the residual stream fp32; shards have all weights in bf16 anyway.
        latent = self.encoder.encode(tokens + positions.to(tokens.dtype), mask.visible_valid)
        prediction = self.decoder(latent, mask, valid).float()

        target, mean, deviation = normalize_patches(patches_db.flatten(0, 1).index_select(0, mask.masked))
        error = (prediction - target).square().mean(-1)
        loss = error.sum() / max(1, len(error))
        return MAEOutput(loss, prediction, target, mask.mask, mean, deviation)

    def num_masked(self, waveform: Tensor, length: Sequence[int] | None = None) -> int:
        """M, the masked tokens of a batch, without looking at it."""
        length = [waveform.shape[1]] * len(waveform) if length is None else length
        return sum(count_masked(self.encoder.num_tokens(samples), self.mask_ratio) for samples in length)

    def run(self, function: Callable, *arguments: Any) -> Any:
        """Return `function(*arguments)`, which uses this network; FSDP gathers the weights before it runs."""
        return function(*arguments)


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, P) in dB -> patches with mean 0 and (unbiased) standard deviation 1; also both statistics, (M, 1) each."""
    mean = patches.mean(-1, keepdim=True)
    centered = patches - mean
    deviation = (centered.square().sum(-1, keepdim=True) / (patches.shape[-1] - 1) + 1e-6).sqrt()
    return centered / deviation, mean, deviation


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Select tokens: values (B, N, D), index (B, K) -> (B, K, D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
