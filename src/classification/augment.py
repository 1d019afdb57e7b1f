"""Random changes of a training batch, after it is on its device: gain, time shift, added noise, mixup, SpecAugment.

Each is a function of tensors and off at 0; the generator is torch's of the device.
"""

import torch
import torchaudio.transforms as AT
from torch import Tensor, nn

from src.config.settings import AugmentConfig


def augment(waveform: Tensor, length: Tensor, target: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T), (B,) samples, (B, C) or (B, N, C) shares of the classes; the same, changed as the settings say."""
    if config.gain_db:
        waveform = gain(waveform, config.gain_db)
    if config.shift_seconds:
        waveform = shift(waveform, length, round(config.shift_seconds * 16000))
    if config.noise_db is not None:
        waveform = add_noise(waveform, length, config.noise_db)
    if config.mixup:
        waveform, length, target = mixup(waveform, length, target, config.mixup)
    return waveform, length, target


def gain(waveform: Tensor, most_db: float) -> Tensor:
    """Each row louder or softer by up to `most_db`."""
    decibel = (2 * torch.rand(len(waveform), 1, device=waveform.device) - 1) * most_db
    return waveform * 10 ** (decibel / 20)


def shift(waveform: Tensor, length: Tensor, most_samples: int) -> Tensor:
    """Each row turned in time within its own length, by up to `most_samples` to either side."""
    by = torch.randint(-most_samples, most_samples + 1, (len(waveform), 1), device=waveform.device)
    index = torch.arange(waveform.shape[1], device=waveform.device)[None]
    own = length[:, None].clamp(min=1)
    return waveform.gather(1, torch.where(index < own, (index - by) % own, index))


def add_noise(waveform: Tensor, length: Tensor, least_db: float) -> Tensor:
    """White noise under each row's own level by `least_db` to `least_db` + 30 dB; padding stays silent."""
    real = torch.arange(waveform.shape[1], device=waveform.device)[None] < length[:, None]
    level = ((waveform * real).square().sum(1) / length.clamp(min=1)).sqrt()
    below = least_db + 30 * torch.rand(len(waveform), device=waveform.device)
    noise = torch.randn_like(waveform) * (level * 10 ** (-below / 20))[:, None]
    return waveform + noise * real


def mixup(waveform: Tensor, length: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each row with a share of another (Zhang et al., 2018), shares from Beta(alpha, alpha); labels mixed alike."""
    share = torch.distributions.Beta(alpha, alpha).sample((len(waveform),)).to(waveform)
    share = torch.maximum(share, 1 - share)[:, None]
    other = torch.randperm(len(waveform), device=waveform.device)
    mixed = share * waveform + (1 - share) * waveform[other]
    of_target = share.reshape(-1, *[1] * (target.ndim - 1))
    target = of_target * target + (1 - of_target) * target[other]
    return mixed, torch.maximum(length, length[other]), target


class SpecAugment(nn.Module):
    """torchaudio's masking of bands and frames, for the normalised log-mel; on in training only.

    Args:
        bands, frames: widest mask; masked values become 0, the mean.
    """

    def __init__(self, bands: int, frames: int) -> None:
        super().__init__()
        self.masks = nn.Sequential(AT.FrequencyMasking(bands, iid_masks=True), AT.TimeMasking(frames, iid_masks=True))

    def forward(self, log_mel: Tensor) -> Tensor:
        """(B, n_mels, F) -> the same shape."""
        return self.masks(log_mel[:, None])[:, 0] if self.training else log_mel
