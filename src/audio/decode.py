"""Decode audio (bytes or a path) to mono samples at 16 kHz; broken files raise AudioError.

`src.audio.sound` opens and reads; soxr resamples.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soxr

from src.audio.containers import CONTAINER_SUFFIXES, HAS_AV, ContainerSound
from src.audio.error import AudioError
from src.audio.sound import Sound, blocks, count_frames, open_sound, read_mono, seek_frame, seeks_again
from src.audio.streams import Encoded, streams

SAMPLE_RATE = 16000
SUFFIXES = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf",
    ".w64", ".rf64", ".sph", *(CONTAINER_SUFFIXES if HAS_AV else ()),
)  # fmt: skip
# 0.05 dB (RMS of the log-mel) from the best, VHQ, which takes 1.4 to 1.5 times as long; MQ costs the same and has twice
# the error (docs/results.md, `python -m benchmarks.resample`).
SOXR_QUALITY = "HQ"
HIGHEST_PEAK = 2.0**32  # beyond 32-bit integers that were never scaled: not audio, and its power overflows
_GAP_SECONDS = 1.0  # between two ranges, is read and dropped: as fast as a seek, or faster
_FILTER_SAMPLES = 160  # half the resampling filter at most, in samples at the lower of the two rates


class Header(NamedTuple):
    seconds: float
    sample_rate: int
    channels: int


def probe(file: Encoded) -> Header:
    """Length, rate and channels from the header alone; of joined streams the sum of their lengths.

    A length that is impossible for the file size (FLAC written to a pipe has none) is counted by decoding.

    Raises:
        AudioError: not readable by libsndfile, no samples, a sample rate outside 1 kHz to 768 kHz.
    """
    headers = []
    for stream in _streams(file):
        with open_sound(stream) as sound:
            container = isinstance(sound, ContainerSound)
            frames = sound.count_frames() if container else count_frames(sound, stream)
            headers.append(Header(frames / sound.samplerate, sound.samplerate, sound.channels))
    return headers[0]._replace(seconds=sum(header.seconds for header in headers))


def decode(file: Encoded, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Samples (T,), fp32, 16 kHz, the mean of all channels. Only the requested range is read.

    A range is a slice of the whole, `decode(file)[round(16000 * start_seconds):]`, resampling included. Levels are not
    changed, even beyond [-1, 1]. Truncated uncompressed audio gives the samples it has; truncated compressed audio is
    an error.

    Args:
        start_seconds: start of the range. seconds: its length, less at the end of the file; None reads to the end.

    Raises:
        AudioError: as `probe`; damaged data; samples that are not finite, or huge.
    """
    first = round(start_seconds * SAMPLE_RATE)
    count = None if seconds is None else max(1, round(seconds * SAMPLE_RATE))
    parts = _streams(file)
    if len(parts) == 1:
        samples = _decode_stream(parts[0], first, count)
    else:
        samples = np.concatenate([_decode_stream(part, 0, None) for part in parts])[first:][:count]
    if not len(samples):
        raise AudioError("no samples")
    return samples


def decode_ranges(file: Encoded, ranges: Sequence[tuple[float, float]]) -> list[np.ndarray | AudioError]:
    """`decode(file, start_seconds, seconds)` of each range, or its error; the file is opened once and read onwards.

    Args:
        ranges: (start_seconds, seconds), ascending; they may overlap.
    """
    found: list[np.ndarray | AudioError] = []
    with contextlib.suppress(AudioError):  # `decode` raises it again below
        parts = _streams(file)
        if len(parts) == 1:
            for samples in _decode_runs(parts[0], ranges):
                if not len(samples):
                    raise AudioError("no samples")
                found.append(samples)
    for start_seconds, seconds in ranges[len(found) :]:
        try:
            found.append(decode(file, start_seconds, seconds))
        except AudioError as error:
            found.append(error)
    return found


def decode_blocks(file: Encoded, block_seconds: float = 30.0, sample_rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """`decode(file)` in consecutive blocks, in memory independent of the length; at another rate, in Hz, if asked.

    Raises:
        AudioError: as `decode`, when the damage is reached.
    """
    empty = True
    for stream in _streams(file):
        for block in _stream_blocks(stream, block_seconds, sample_rate):
            empty = False
            yield block
    if empty:
        raise AudioError("no samples")


def channel_peak(file: Encoded) -> float:
    """The largest absolute sample of all channels. Errors as `decode`."""
    peak = 0.0
    for stream in _streams(file):
        with open_sound(stream) as sound:
            for block in blocks(sound, count_frames(sound, stream)):
                peak = max(peak, float(np.abs(block).max(initial=0.0)))
    return peak


def check_samples(samples: np.ndarray) -> None:
    """Raises AudioError: samples that are not finite, or beyond HIGHEST_PEAK."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.vdot(samples, samples) <= HIGHEST_PEAK:  # so is each of them; False if one is NaN
            return
    peak = max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))  # NaN where there is one
    if not math.isfinite(peak):
        raise AudioError("samples that are not finite (NaN or inf)")
    if peak > HIGHEST_PEAK:
        raise AudioError(f"samples of up to {peak:.3g}; they must be in [-1, 1]")


def _decode_stream(file: Encoded, first: int, count: int | None) -> np.ndarray:
    """Samples `first` to `first + count` at 16 kHz, fewer or none at the end; a count of None reads to the end.

    The range is read with a margin on both sides, which the resampling filter needs. It starts at a sample of the
    file that falls on one at 16 kHz.
    """
    with open_sound(file) as sound:
        rate = sound.samplerate
        length = count_frames(sound, file) if count is None else sound.frames
        begin, end = _frames(first, count, rate)
        if begin >= length:
            return np.zeros(0, np.float32)
        samples = _read_range(sound, file, begin, length if end is None else end)
    return _resampled(samples, rate, first - begin * SAMPLE_RATE // rate, count)


def _decode_runs(file: Encoded, ranges: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Samples of each range, none beyond the end of the file; a seek for each run of them.

    The file is opened again for it where a second seek gives wrong samples (Vorbis). An MP3 stays open: until it knows
    where its frames are, a seek reads all that lies before.

    Raises:
        AudioError: as `decode`; a stream that cannot seek.
    """
    with contextlib.ExitStack() as opened:
        sound: Sound | None = None
        for run in _runs(ranges):
            if sound is None or not seeks_again(sound):
                opened.close()
                sound = opened.enter_context(open_sound(file))
            yield from _decode_run(sound, run)


def _decode_run(sound: Sound, ranges: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """Samples of each range, with one seek."""
    held, held_begin = np.zeros(0, np.float32), None  # the stream stands at the end of `held`
    for start_seconds, seconds in ranges:
        first, count = round(start_seconds * SAMPLE_RATE), max(1, round(seconds * SAMPLE_RATE))
        begin, end = _frames(first, count, sound.samplerate)
        assert end is not None
        if held_begin is None:
            seek_frame(sound, begin)
            held = read_mono(sound, end - begin)
        else:
            position = held_begin + len(held)
            more = read_mono(sound, max(0, end - position))[max(0, begin - position) :]
            held = np.concatenate([held[begin - held_begin :], more]) if begin < position else more
        held_begin = begin
        skipped = first - begin * SAMPLE_RATE // sound.samplerate
        yield _resampled(held[: end - begin], sound.samplerate, skipped, count)


def _runs(ranges: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """Ascending ranges, split where a gap is longer than what is read and dropped."""
    run: list[tuple[float, float]] = []
    for start, seconds in ranges:
        if run and start > sum(run[-1]) + _GAP_SECONDS:
            yield run
            run = []
        run.append((start, seconds))
    if run:
        yield run


def _frames(first: int, count: int | None, rate: int) -> tuple[int, int | None]:
    """Frames of a stream that `count` samples at 16 kHz from `first` need, with a margin for the resampling filter."""
    if rate == SAMPLE_RATE:
        return first, None if count is None else first + count
    margin, step = math.ceil(_FILTER_SAMPLES * max(1, rate / SAMPLE_RATE)), rate // math.gcd(rate, SAMPLE_RATE)
    begin = max(0, first * rate // SAMPLE_RATE - margin) // step * step
    return begin, None if count is None else math.ceil((first + count) * rate / SAMPLE_RATE) + margin


def _resampled(samples: np.ndarray, rate: int, skipped: int, count: int | None) -> np.ndarray:
    """`count` samples at 16 kHz, without the `skipped` first. Raises AudioError: as `check_samples`; too short."""
    check_samples(samples)
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    samples = soxr.resample(samples, rate, SAMPLE_RATE, quality=SOXR_QUALITY)
    if not len(samples):
        raise AudioError("shorter than one sample at 16 kHz")
    return samples[skipped:] if count is None else samples[skipped : skipped + count]


def _read_range(sound: Sound, file: Encoded, begin: int, end: int) -> np.ndarray:
    """Frames `begin` to `end` of an open stream, mono. If it cannot seek, the frames before are read and dropped."""
    try:
        seek_frame(sound, begin)
    except AudioError:  # GSM 6.10 and most kinds of ADPCM
        with open_sound(file) as again:
            return read_mono(again, end)[begin:]
    return read_mono(sound, end - begin)


def _stream_blocks(file: Encoded, block_seconds: float, sample_rate: int) -> Iterator[np.ndarray]:
    with open_sound(file) as sound:
        rate, left = sound.samplerate, count_frames(sound, file)
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality=SOXR_QUALITY)
        wanted = round(block_seconds * rate)
        while left > 0:
            block = read_mono(sound, min(wanted, left))
            left = left - len(block) if len(block) == wanted else 0
            check_samples(block)
            if rate != sample_rate:
                block = resampler.resample_chunk(block, last=left == 0)
            if len(block):
                yield block


def _streams(file: Encoded) -> list[Encoded]:
    """Raises AudioError: no such file, no access."""
    try:
        return streams(file)
    except IsADirectoryError:
        raise AudioError("a folder, not a file") from None
    except OSError as error:
        raise AudioError(f"not readable ({error.strerror or error})") from None
