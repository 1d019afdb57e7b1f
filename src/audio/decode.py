"""Decode audio (bytes or a path) to mono samples at 16 kHz; broken files raise AudioError.

soundfile (libsndfile) decodes and seeks, soxr resamples.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000
SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".sph",
)  # fmt: skip
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 768_000  # outside this range, the header is broken
_BLOCK_FRAMES = 2**20  # read at a time: a broken header may claim more than fits into memory
_MAX_FRAMES_PER_BYTE = 10_000  # above this, the header is wrong: even digital silence in FLAC has only hundreds
_MP3_PREROLL_SAMPLES = 4608  # decoded before a crop and dropped: MP3 needs earlier bits, or the crop starts with noise

Encoded = bytes | str | Path


class AudioError(ValueError):
    """A clip that cannot be used. The message is a short reason without the file name."""


class Header(NamedTuple):
    seconds: float
    sample_rate: int
    channels: int


def probe(file: Encoded) -> Header:
    """Length, rate and channels from the header alone.

    A length that is impossible for the file size (FLAC written to a pipe has none) is counted by decoding.

    Raises:
        AudioError: not readable by libsndfile, no samples, a sample rate outside 1 kHz to 768 kHz.
    """
    with _open(file) as sound:
        return Header(_count_frames(sound, file) / sound.samplerate, sound.samplerate, sound.channels)


def decode(file: Encoded, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Samples (T,), fp32, 16 kHz, the mean of all channels. Only the requested range is read.

    Levels are not changed, even beyond [-1, 1]. Truncated uncompressed audio gives the samples it has; truncated
    compressed audio is an error.

    Args:
        start_seconds: start of the range. seconds: its length, less at the end of the file; None reads to the end.

    Raises:
        AudioError: as `probe`; damaged data; samples that are not finite.
    """
    with _open(file) as sound:
        rate = sound.samplerate
        start = min(round(start_seconds * rate), sound.frames)
        preroll = min(start, _MP3_PREROLL_SAMPLES) if sound.subtype.startswith("MPEG") else 0
        try:
            if start > 0:
                sound.seek(start - preroll)
            wanted = _count_frames(sound, file) if seconds is None else max(1, round(seconds * rate))
            samples = _read(sound, preroll + wanted)[preroll:]
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged data ({_reason(error)})") from None
    if not len(samples):
        raise AudioError("no samples")
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not finite (NaN or inf)")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
        if not len(samples):
            raise AudioError("shorter than one sample at 16 kHz")
    return samples


def decode_blocks(file: Encoded, block_seconds: float = 30.0) -> Iterator[np.ndarray]:
    """`decode(file)` in consecutive blocks, in memory independent of the length.

    Raises:
        AudioError: as `decode`, when the damage is reached.
    """
    with _open(file) as sound:
        rate, left = sound.samplerate, _count_frames(sound, file)
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        wanted, empty = round(block_seconds * rate), True
        while left > 0:
            try:
                block = _read(sound, min(wanted, left))
            except soundfile.LibsndfileError as error:
                raise AudioError(f"damaged data ({_reason(error)})") from None
            left = left - len(block) if len(block) == wanted else 0
            if not np.isfinite(block).all():
                raise AudioError("samples that are not finite (NaN or inf)")
            if rate != SAMPLE_RATE:
                block = resampler.resample_chunk(block, last=left == 0)
            if len(block):
                empty = False
                yield block
        if empty:
            raise AudioError("no samples")


def to_mono_16k(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Convert an array, (T,) or with channels (on the shorter axis), to (T,) fp32 at 16 kHz.

    Raises:
        AudioError: no samples, or some that are not finite.
    """
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim == 2:
        samples = _mono(samples if samples.shape[1] < samples.shape[0] else samples.T)
    if samples.ndim != 1 or not len(samples):
        raise AudioError(f"an array of shape {samples.shape}; it must be (samples,) or (channels, samples)")
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not finite (NaN or inf)")
    return samples if sample_rate == SAMPLE_RATE else soxr.resample(samples, sample_rate, SAMPLE_RATE, quality="HQ")


def _open(file: Encoded) -> soundfile.SoundFile:
    if not isinstance(file, bytes) and Path(file).is_dir():
        raise AudioError("a folder, not a file")
    try:
        sound = soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else _path(file))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not readable as audio ({_reason(error)})") from None
    except (OSError, TypeError) as error:  # soundfile raises TypeError for a file named .raw
        raise AudioError(f"not readable ({error})") from None
    if sound.frames <= 0 or not _LOWEST_RATE_HZ <= sound.samplerate <= _HIGHEST_RATE_HZ:
        sound.close()
        raise AudioError("no samples" if sound.frames <= 0 else f"a sample rate of {sound.samplerate} Hz")
    return sound


def _path(file: str | Path) -> str | bytes:
    """The path as bytes on POSIX, as soundfile refuses a str that is not UTF-8."""
    return os.fsencode(file) if os.name == "posix" else str(file)


def _count_frames(sound: soundfile.SoundFile, file: Encoded) -> int:
    """The number in the header, or the actual one if the header claims more than the file can hold."""
    size = len(file) if isinstance(file, bytes) else Path(file).stat().st_size
    if sound.frames <= size * _MAX_FRAMES_PER_BYTE:
        return sound.frames
    frames = 0
    with _open(file) as again:
        try:
            while block := len(again.read(4096, dtype="float32")):
                frames += block
        except soundfile.LibsndfileError:  # raised at the end of a file of unknown length
            pass
    if not frames:
        raise AudioError("no samples")
    return frames


def _read(sound: soundfile.SoundFile, most: int) -> np.ndarray:
    """Up to `most` frames from the current position, mono."""
    parts: list[np.ndarray] = []
    left = most
    while left > 0:
        wanted = min(left, _BLOCK_FRAMES)
        block = sound.read(wanted, dtype="float32", always_2d=True)
        parts.append(_mono(block))
        left -= len(block)
        if len(block) < wanted:
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _mono(block: np.ndarray) -> np.ndarray:
    """Mean of the channels of (T, C); NumPy's `mean` over two columns takes 20 times as long as their sum."""
    if block.shape[1] == 1:
        return block[:, 0]
    return (block[:, 0] + block[:, 1]) / 2 if block.shape[1] == 2 else block.mean(axis=1)


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".").lower() or f"libsndfile error {error.code}"
