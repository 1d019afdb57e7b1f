"""Augmentation of a training batch on its device: gain, time shift, noise, mixup, SpecAugment.

All use torch's default generator of that device.
"""

import torch
import torchaudio.transforms as AT
from torch import Tensor, nn

from src.config.settings import AugmentConfig


def augment(waveform: Tensor, length: Tensor, target: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the augmentations that are on.

    Args:
        waveform: (B, T). length: (B,) samples. target: (B, C) or (B, N, C), class probabilities 0 to 1.

    Returns:
        Waveform, length and target of the same shapes.
    """
    if config.gain_db:
        waveform = gain(waveform, config.gain_db)
    if config.shift_seconds:
        waveform = shift(waveform, length, round(config.shift_seconds * 16000))
    if config.noise_db is not None:
        waveform = add_noise(waveform, length, config.noise_db)
    if config.mixup:
        waveform, length, target = mixup(waveform, length, target, config.mixup)
    return waveform, length, target


def gain(waveform: Tensor, max_db: float) -> Tensor:
    """Scale each row by a gain drawn from -max_db to max_db."""
    decibel = (2 * torch.rand(len(waveform), 1, device=waveform.device) - 1) * max_db
    return waveform * 10 ** (decibel / 20)


def shift(waveform: Tensor, length: Tensor, max_samples: int) -> Tensor:
    """Roll each row in time, within its own length, by up to `max_samples` in either direction."""
    by = torch.randint(-max_samples, max_samples + 1, (len(waveform), 1), device=waveform.device)
    index = torch.arange(waveform.shape[1], device=waveform.device)[None]
    period = length[:, None].clamp(min=1)
    return waveform.gather(1, torch.where(index < period, (index - by) % period, index))


def add_noise(waveform: Tensor, length: Tensor, min_snr_db: float) -> Tensor:
    """Add white noise to each row, at an SNR drawn from min_snr_db to min_snr_db + 30 dB; padding stays silent."""
    valid = torch.arange(waveform.shape[1], device=waveform.device)[None] < length[:, None]
    level = ((waveform * valid).square().sum(1) / length.clamp(min=1)).sqrt()
    snr_db = min_snr_db + 30 * torch.rand(len(waveform), device=waveform.device)
    noise = torch.randn_like(waveform) * (level * 10 ** (-snr_db / 20))[:, None]
    return waveform + noise * valid


def mixup(waveform: Tensor, length: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mix each row and its target with another (Zhang et al., 2018), with a weight from Beta(alpha, alpha)."""
    weight = torch.distributions.Beta(alpha, alpha).sample((len(waveform),)).to(waveform)
    weight = torch.maximum(weight, 1 - weight)[:, None]
    other = torch.randperm(len(waveform), device=waveform.device)
    mixed = weight * waveform + (1 - weight) * waveform[other]
    target_weight = weight.reshape(-1, *[1] * (target.ndim - 1))
    target = target_weight * target + (1 - target_weight) * target[other]
    return mixed, torch.maximum(length, length[other]), target


class SpecAugment(nn.Module):
    """torchaudio's frequency and time masking of a log-mel spectrogram in dB, in training mode only.

    Masked values become the mean of their band, as in SpecAugment (Park et al., 2019), where it is 0 because the input
    is normalized: batch normalization subtracts the mean after the masks.

    Args:
        bands, frames: maximum width of the mask.
    """

    def __init__(self, bands: int, frames: int) -> None:
        super().__init__()
        self.masks = nn.Sequential(AT.FrequencyMasking(bands, iid_masks=True), AT.TimeMasking(frames, iid_masks=True))

    def forward(self, log_mel: Tensor, mean: Tensor) -> Tensor:
        """log_mel (B, n_mels, F) in dB and mean (n_mels,), that of the batch norm -> the shape of log_mel."""
        if not self.training:
            return log_mel
        kept = self.masks(torch.ones_like(log_mel)[:, None])[:, 0]
        return torch.where(kept > 0, log_mel, mean[:, None])
