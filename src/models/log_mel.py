"""Waveform to normalized log-mel spectrogram: the front end of Dasheng (STFT 512 / hop 160, 64 HTK mel bands).

A clip's result does not depend on its batch: reflection padding at the clip's own end, dB floor relative to its own
maximum, batch-norm statistics over real frames only. The filter bank is torchaudio's.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torchaudio.functional as AF
from torch import Tensor, nn


class LogMel(nn.Module):
    """Power mel spectrogram in dB.

    Args:
        sample_rate: of the waveform, in Hz.
        n_fft: length of the FFT and of the periodic Hann window, in samples.
        hop_length: samples between frames.
        n_mels: number of mel bands between f_min and f_max (Hz); HTK scale, triangles of height one.
        floor_db: values more than this below the clip's maximum are raised to that floor.
    """

    window: Tensor  # (n_fft,)
    filters: Tensor  # (n_fft // 2 + 1, n_mels)
    amin = 1e-10  # lower bound of the power, -100 dB (as torchaudio's AmplitudeToDB)
    min_seconds = 0.05  # shorter clips are zero-padded: one token and the reflection padding need this much

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 512,
        hop_length: int = 160,
        n_mels: int = 64,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        floor_db: float = 120.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop_length, self.n_mels = sample_rate, n_fft, hop_length, n_mels
        self.f_min, self.f_max, self.floor_db = f_min, f_max, floor_db
        self.min_samples = round(self.min_seconds * sample_rate)
        self.register_buffer("window", torch.empty(n_fft, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(n_fft // 2 + 1, n_mels, dtype=torch.float32), persistent=False)
        self.reset_buffers()

    def _apply(self, fn, recurse=True):
        return super()._apply(partial(keep_fp32, fn), recurse)

    @property
    def settings(self) -> dict[str, float]:
        """The arguments of the constructor."""
        names = ("sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max", "floor_db")
        return {name: getattr(self, name) for name in names}

    def reset_buffers(self) -> None:
        """Compute window and filter bank on their current device; call it again after `to_empty`."""
        if self.window.is_meta:
            return
        with torch.device("cpu"):
            window = torch.hann_window(self.n_fft)
            filters = AF.melscale_fbanks(
                self.n_fft // 2 + 1, self.f_min, self.f_max, self.n_mels, self.sample_rate, norm=None, mel_scale="htk"
            )
        self.window.copy_(window)
        self.filters.copy_(filters)

    def num_frames(self, length):
        """Number of frames of a clip of `length` samples (int or tensor)."""
        if isinstance(length, Tensor):
            return length.clamp(min=self.min_samples) // self.hop_length + 1
        return max(length, self.min_samples) // self.hop_length + 1

    def forward(
        self, waveform: Tensor, length: Tensor | Sequence[int] | None = None, peak_db: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """dB values and which frames are real.

        Args:
            waveform: (B, T) in [-1, 1].
            length: (B,) samples per clip; None when no row is padded. A list spares the synchronization that reading a
                tensor on a GPU costs.
            peak_db: (B,) maximum over the whole clip, when `waveform` is only part of it; None uses each row's own.

        Returns:
            (B, n_mels, F) in dB, fp32 even under autocast; and (B, F) bool, True for real frames, None when all are.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            if length is not None:
                waveform, length = self._hide_padding(waveform, length)
            if waveform.shape[1] < self.min_samples:
                waveform = nn.functional.pad(waveform, (0, self.min_samples - waveform.shape[1]))
            frames = _reflect_ends(waveform, self._clip_end(waveform, length), self.n_fft // 2)
            frames = frames.unfold(-1, self.n_fft, self.hop_length) * self.window  # (B, F, n_fft)
            real, imaginary = torch.view_as_real(torch.fft.rfft(frames)).unbind(-1)
            power = (real.square() + imaginary.square()) @ self.filters  # (B, F, n_mels)
            decibel = 10.0 * power.clamp(min=self.amin).log10()
            valid = None
            if length is not None:
                index = torch.arange(power.shape[1], device=power.device)
                valid = index < self.num_frames(length)[:, None]
                decibel = decibel.masked_fill(~valid[..., None], -torch.inf)
            peak = decibel.amax(dim=(1, 2), keepdim=True) if peak_db is None else peak_db[:, None, None]
            floor = peak - self.floor_db
            return torch.maximum(decibel, floor).transpose(1, 2), valid

    def _hide_padding(self, waveform: Tensor, length: Tensor | Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Zero the padding of clips under 50 ms (reflection covers the others); drop `length` when no row is padded."""
        num_samples = waveform.shape[1]
        samples = length.tolist() if isinstance(length, Tensor) else length
        shortest, longest = min(samples), max(samples)
        if longest > num_samples:
            raise ValueError(f"length {longest} is more than the {num_samples} samples of the waveform")
        if shortest == num_samples:
            return waveform, None
        length = torch.as_tensor(length).to(waveform.device, non_blocking=True)
        if shortest < self.min_samples:
            beyond = torch.arange(num_samples, device=waveform.device) >= length[:, None]
            waveform = waveform.masked_fill(beyond, 0.0)
        return waveform, length

    def _clip_end(self, waveform: Tensor, length: Tensor | None) -> Tensor:
        if length is None:
            return torch.full((waveform.shape[0],), waveform.shape[1], device=waveform.device)
        return length.clamp(min=self.min_samples)

    def extra_repr(self) -> str:
        return f"{self.sample_rate} Hz, n_fft={self.n_fft}, hop_length={self.hop_length}, n_mels={self.n_mels}"


def keep_fp32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What `fn` of `Module._apply` does, except for the dtype: the front end stays fp32 under `.half()` and others."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def _reflect_ends(waveform: Tensor, length: Tensor, pad: int) -> Tensor:
    """(B, T) -> (B, T + 2 pad), each row reflected at its first sample and at its own last one (`length` - 1)."""
    step = torch.arange(1, pad + 1, device=waveform.device)
    extended = nn.functional.pad(waveform, (pad, pad))
    extended[:, :pad] = waveform[:, 1 : pad + 1].flip(1)
    end = length[:, None] - 1
    return extended.scatter(1, end + pad + step, waveform.gather(1, end - step))


class MelBatchNorm(nn.BatchNorm1d):
    """BatchNorm over mel bands; training statistics count real frames only and are synchronized across processes.

    Running statistics are cumulative averages for the first 1 / momentum steps and exponential moving averages
    afterwards, so they are unbiased from the first step (PyTorch's start from 0 and 1). No gradient flows through the
    statistics: the front end has no parameters before this layer.
    """

    def __init__(self, n_mels: int, momentum: float = 0.01) -> None:
        super().__init__(n_mels, momentum=momentum, dtype=torch.float32)

    def _apply(self, fn, recurse=True):
        return super()._apply(partial(keep_fp32, fn), recurse)

    def forward(self, log_mel: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, n_mels, F) in dB and (B, F) bool -> (B, n_mels, F), each band normalized, then the affine transform."""
        with torch.autocast(log_mel.device.type, enabled=False):
            mean, var = self._update_statistics(log_mel, valid) if self.training else self._running()
            scale = self.weight * torch.rsqrt(var + self.eps)
            return torch.addcmul((self.bias - mean * scale)[:, None], log_mel, scale[:, None])

    @torch.no_grad()
    def _update_statistics(self, log_mel: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        frames = log_mel.transpose(0, 1).flatten(1)  # (n_mels, B F)
        weight = torch.ones_like(frames[:1]) if valid is None else valid.reshape(1, -1).to(frames.dtype)
        total = _sum_over_processes(torch.cat([(frames * weight).sum(1), weight.sum(1)]))
        count, mean = total[-1], total[:-1] / total[-1]
        var = _sum_over_processes(((frames - mean[:, None]).square() * weight).sum(1)) / count
        running_mean, running_var = self._running()
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        share = (1.0 / self.num_batches_tracked).clamp(min=self.momentum)
        running_mean.lerp_(mean, share)
        running_var.lerp_(var * (count / (count - 1)), share)
        return mean, var

    def _running(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None and self.running_var is not None
        return self.running_mean, self.running_var


def _sum_over_processes(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
