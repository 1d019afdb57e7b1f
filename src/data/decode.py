"""Encoded audio (bytes or a path) to samples at 16 kHz; the one place where broken files are met.

soundfile (libsndfile) decodes and seeks, soxr resamples.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".rf64", ".snd")
_BLOCK_SECONDS = 60  # read this much at a time: a header may promise more than memory holds

Encoded = bytes | str | Path


class AudioError(ValueError):
    """A clip that cannot be used; the message says why in a few words, without the name."""


class Header(NamedTuple):
    seconds: float
    sample_rate: int
    channels: int


def probe(file: Encoded) -> Header:
    """Length, rate and channels from the header alone.

    Raises:
        AudioError: not audio that libsndfile reads, or no samples.
    """
    with _open(file) as sound:
        return Header(sound.frames / sound.samplerate, sound.samplerate, sound.channels)


def decode(file: Encoded, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Samples (T,), fp32, 16 kHz, the mean of all channels; only what is asked for is read.

    Levels are left as they are, also beyond [-1, 1]. A file that ends before its header says gives what is there.

    Args:
        start_seconds: where to begin. seconds: how much, less at the end of the file; None reads to the end.

    Raises:
        AudioError: as `probe`; also data that does not decode, or samples that are not finite.
    """
    with _open(file) as sound:
        rate = sound.samplerate
        try:
            if start_seconds > 0:
                sound.seek(min(round(start_seconds * rate), sound.frames))
            samples = _read(sound, None if seconds is None else max(1, round(seconds * rate)))
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged data ({_reason(error)})") from None
    if not len(samples):
        raise AudioError("no samples")
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not finite (NaN or inf)")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    return samples


def _open(file: Encoded) -> soundfile.SoundFile:
    if not isinstance(file, bytes) and Path(file).is_dir():
        raise AudioError("a folder, not a file")
    try:
        sound = soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"not readable as audio ({_reason(error)})") from None
    except (OSError, TypeError) as error:  # soundfile asks for details of a file named .raw with a TypeError
        raise AudioError(f"not readable ({error})") from None
    if sound.frames <= 0 or sound.samplerate <= 0:
        sound.close()
        raise AudioError("no samples")
    return sound


def _read(sound: soundfile.SoundFile, most: int | None) -> np.ndarray:
    """Up to `most` frames from where the file stands, mono."""
    parts: list[np.ndarray] = []
    left = sound.frames if most is None else most
    while left > 0:
        wanted = min(left, _BLOCK_SECONDS * sound.samplerate)
        block = sound.read(wanted, dtype="float32", always_2d=True)
        parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
        left -= len(block)
        if len(block) < wanted:
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".").lower() or f"libsndfile error {error.code}"
