"""Arrays, tensors and lists of samples, as people have them, to mono fp32 at 16 kHz."""

from typing import Any

import numpy as np
import soxr

from src.audio.decode import SAMPLE_RATE, SOXR_QUALITY, AudioError, check_samples

MOST_FLOAT = 100.0  # floats beyond are integers that were never scaled
_MOST_CHANNELS = 32
_FULL_SCALE = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}


def to_mono_16k(samples: Any, sample_rate: int) -> np.ndarray:
    """Convert samples to (T,) fp32 at 16 kHz, the mean of all channels.

    Args:
        samples: array, list, or tensor on any device: (T,), (channels, T) or (T, channels). Floats are in [-1, 1];
            int8, int16, int32 and uint8 are scaled by their type.

    Raises:
        AudioError: no samples, or not finite; another type or shape; floats far beyond [-1, 1].
    """
    waveform = to_mono(samples)
    if not 1_000 <= sample_rate <= 768_000:
        raise AudioError(f"a sample rate of {sample_rate} Hz")
    if sample_rate == SAMPLE_RATE:
        return waveform
    return soxr.resample(waveform, sample_rate, SAMPLE_RATE, quality=SOXR_QUALITY)


def to_mono(samples: Any) -> np.ndarray:
    """As `to_mono_16k`, at their own rate."""
    waveform = as_float(samples)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=_channel_axis(waveform.shape))
    if waveform.ndim != 1 or not len(waveform):
        raise AudioError(f"an array of shape {waveform.shape}; it must be (samples,) or (channels, samples)")
    return waveform


def as_float(samples: Any) -> np.ndarray:
    """The same shape in fp32, integers scaled by their type to [-1, 1]. Errors as `to_mono_16k`."""
    if hasattr(samples, "detach"):  # a tensor
        samples = samples.detach().cpu()
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    try:
        array = np.asarray(samples)
    except ValueError:
        raise AudioError("rows of different lengths; an array must be (samples,) or (channels, samples)") from None
    if array.dtype.name in _FULL_SCALE:
        return (array / _FULL_SCALE[array.dtype.name]).astype(np.float32)
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind != "f":
        raise AudioError(
            f"samples of type {array.dtype}; they must be floats in [-1, 1], or int8, int16, int32 or uint8"
        )
    with np.errstate(over="ignore"):  # of doubles; refused below
        array = array.astype(np.float32)
    check_samples(array)
    if (peak := float(np.abs(array).max(initial=0.0))) > MOST_FLOAT:
        raise AudioError(
            f"floats of up to {peak:.6g}; they must be in [-1, 1]: divide samples of 16-bit integers by 32768"
        )
    return array


def _channel_axis(shape: tuple[int, ...]) -> int:
    axis = int(np.argmin(shape))
    if shape[0] == shape[1] != 1 or shape[axis] > _MOST_CHANNELS:
        raise AudioError(
            f"an array of shape {shape}; which axis holds channels? It must be (samples,) or (channels, samples), "
            f"with up to {_MOST_CHANNELS} channels and more samples than channels"
        )
    return axis
