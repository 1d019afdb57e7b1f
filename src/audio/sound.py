"""An open sound, at its own rate: opened, counted, and read from any frame, the mean of its channels.

soundfile (libsndfile) reads, PyAV what libsndfile does not (`src.audio.containers`).
"""

import contextlib
import io
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from src.audio.containers import ContainerSound, is_container
from src.audio.error import AudioError
from src.audio.streams import Encoded

_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 768_000  # outside this range, the header is broken
_BLOCK_FRAMES = 2**20  # read at a time: a broken header may claim more than fits into memory
_MAX_FRAMES_PER_BYTE = 10_000  # above this, the header is wrong: even digital silence in FLAC has only hundreds
# Decoded before a crop and dropped: an MP3 frame needs up to 511 bytes of earlier ones (255 below 32 kHz), which at the
# lowest bit rates are 12 frames of 1,152 (24 of 576); without them, the crop starts with noise.
_MP3_PREROLL_FRAMES = 13824
_STDERR = threading.Lock()


class FileSound(soundfile.SoundFile):
    def seekable(self) -> bool:
        """False keeps soundfile from seeking after each read, which costs MP3 the bits that the next block needs."""
        return False


Sound = FileSound | ContainerSound


def open_sound(file: Encoded) -> Sound:
    """Raises AudioError: not readable by libsndfile or PyAV, no samples, a sample rate outside 1 kHz to 768 kHz."""
    try:
        sound = FileSound(io.BytesIO(file) if isinstance(file, bytes) else _path(file))
    except soundfile.LibsndfileError as error:
        if not is_container(file):
            raise AudioError(f"not readable as audio ({_reason(error)})") from None
        return _checked(ContainerSound(file))
    except (OSError, TypeError) as error:  # soundfile raises TypeError for a file named .raw
        raise AudioError(f"not readable ({error})") from None
    return _checked(sound)


def _checked(sound: Sound) -> Sound:
    if sound.frames <= 0 or not _LOWEST_RATE_HZ <= sound.samplerate <= _HIGHEST_RATE_HZ:
        sound.close()
        raise AudioError("no samples" if sound.frames <= 0 else f"a sample rate of {sound.samplerate} Hz")
    return sound


def _path(file: str | Path) -> str | bytes:
    """The path as bytes on POSIX, as soundfile refuses a str that is not UTF-8."""
    return os.fsencode(file) if os.name == "posix" else str(file)


def count_frames(sound: Sound, file: Encoded) -> int:
    """The number in the header, or the actual one if the header claims more than the file can hold."""
    if isinstance(sound, ContainerSound):
        return sound.frames
    size = len(file) if isinstance(file, bytes) else os.stat(file).st_size  # noqa: PTH116, as above
    if sound.frames <= size * _MAX_FRAMES_PER_BYTE:
        return sound.frames
    frames = 0
    with open_sound(file) as again:
        try:
            while block := len(again.read(4096, dtype="float32")):
                frames += block
        except soundfile.LibsndfileError:  # raised at the end of a file of unknown length
            pass
    if not frames:
        raise AudioError("no samples")
    return frames


def seek_frame(sound: Sound, begin: int) -> None:
    """Go to frame `begin`. Raises AudioError: the stream cannot seek, or is damaged there."""
    preroll = min(begin, _MP3_PREROLL_FRAMES) if sound.subtype.startswith("MPEG") else 0
    with _worker_stderr_closed() if preroll else contextlib.nullcontext():
        try:
            if begin > 0:
                sound.seek(begin - preroll)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"cannot seek ({_reason(error)})") from None
        if preroll:
            read_mono(sound, preroll)


def seeks_again(sound: Sound) -> bool:
    """Whether `seek_frame` is right after a read, too: not in Ogg, where a second seek gives wrong Vorbis samples."""
    return isinstance(sound, FileSound) and sound.format != "OGG"


@contextlib.contextmanager
def _worker_stderr_closed() -> Iterator[None]:
    """libmpg123 writes an error for each frame that it reads without the bits before; those frames are dropped.

    In workers only: in the main process, other threads write to stderr too.
    """
    if multiprocessing.parent_process() is None:
        yield
        return
    with _STDERR:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def read_mono(sound: Sound, most: int) -> np.ndarray:
    """Up to `most` frames from the current position, the mean of the channels. Raises AudioError: damaged data."""
    with np.errstate(over="ignore", invalid="ignore"):  # huge samples are refused by `check_samples`
        parts = [_mono(block) for block in blocks(sound, most)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.float32)


def blocks(sound: Sound, most: int) -> Iterator[np.ndarray]:
    """The same frames as fp32 (T, C), some at a time. Raises AudioError: damaged data."""
    is_plain = isinstance(sound, FileSound) and sound.subtype == "PCM_16" and sound.format != "FLAC"
    while most > 0:
        wanted = min(most, _BLOCK_FRAMES)
        try:
            block = sound.read(wanted, dtype="int16" if is_plain else "float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"damaged data ({_reason(error)})") from None
        if is_plain:  # NumPy scales the same samples in a quarter of libsndfile's time
            block = np.multiply(block, np.float32(2**-15), dtype=np.float32)
        yield block
        most = most - len(block) if len(block) == wanted else 0


def _mono(block: np.ndarray) -> np.ndarray:
    """Mean of the channels of (T, C); NumPy's `mean` over two columns takes 20 times as long as their sum."""
    if block.shape[1] == 1:
        return block[:, 0]
    return (block[:, 0] + block[:, 1]) / 2 if block.shape[1] == 2 else block.mean(axis=1)


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.strip().rstrip(".").lower() or f"libsndfile error {error.code}"
