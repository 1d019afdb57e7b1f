"""Where libsndfile would stop early or guess: several streams joined in one file, MP3 without a length, and a file of a
Mac beside the sound.

A chained Ogg file (a radio recording, `cat a.ogg b.ogg`) and joined FLAC files are read up to the end of the first
stream; the length of an MP3 without a Xing header is guessed from the bit rate of its first frame. With `._a.mp3`
beside it, `a.mp3` is taken for another format; its bytes are not.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

Encoded = bytes | str | Path

_OGG_FIRST_PAGE = b"OggS\x00\x02"  # of a logical stream
_FLAC_START = b"fLaC\x00\x00\x00\x22"  # the marker, then the header of its first block
_INFO_TAGS = (b"Xing", b"Info", b"VBRI")  # in an MP3 frame that holds no audio
_INFO_OFFSETS = slice(4, 42)  # where in the frame they may be
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_KBPS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # of layer III, MPEG 1 and 2


class _Frame(NamedTuple):
    """Of MPEG layer III. size: in bytes. form: version, rate and mono or not; they change between joined files."""

    size: int
    form: tuple[int, int, bool]


def streams(file: Encoded) -> list[Encoded]:
    """The streams in a file, in order, each read to its end by libsndfile: the file itself unless it needs repair.

    An MP3 without a length gets one, as a Xing frame in front. Surplus bytes between MP3 frames are dropped.

    Raises:
        OSError: no such file, no access.
    """
    if isinstance(file, bytes):
        return _split(file) or [file]
    stat = os.stat(file)  # noqa: PTH116, for each crop: a Path takes longer
    if _is_sound(str(file), stat.st_size, stat.st_mtime_ns):
        return [file]
    return _split_file(str(file)) or [file]


@lru_cache(maxsize=2**16)
def _is_sound(path: str, size: int, mtime_ns: int) -> bool:
    """Whether a file of this size and time can be read as it is; crops of one file ask again and again."""
    return _split_file(path) is None


def _split_file(path: str) -> list[Encoded] | None:
    with open(path, "rb") as opened:
        start = opened.read(4)
        beside = Path(path).with_name(f"._{Path(path).name}").exists()
        if not start or not (beside or start in (b"OggS", b"fLaC") or _is_mpeg(start)):
            return None
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _split(data) or ([data[:]] if beside else None)


def _is_mpeg(start: bytes) -> bool:
    return start[:3] == b"ID3" or (len(start) == 4 and _frame(int.from_bytes(start, "big")) is not None)


def _split(data: bytes | mmap.mmap) -> list[Encoded] | None:
    """None if the data can be read as they are."""
    if data[:4] == b"OggS":
        return _cut(data, list(_ogg_starts(data)))
    if data[:4] == b"fLaC":
        return _cut(data, list(_find(data, _FLAC_START)))
    return _repair_mp3(data) if _is_mpeg(data[:4]) else None


def _cut(data: bytes | mmap.mmap, starts: list[int]) -> list[Encoded] | None:
    if len(starts) < 2:
        return None
    return [bytes(data[start:end]) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _find(data: bytes | mmap.mmap, pattern: bytes) -> Iterator[int]:
    position = data.find(pattern)
    while position >= 0:
        yield position
        position = data.find(pattern, position + len(pattern))


def _ogg_starts(data: bytes | mmap.mmap) -> Iterator[int]:
    """Where each link of the chain starts. The first pages of streams that play together follow each other."""
    end_of_previous = None
    for start in _find(data, _OGG_FIRST_PAGE):
        if start != end_of_previous:
            yield start
        segments = data[start + 26] if start + 26 < len(data) else 0
        end_of_previous = start + 27 + segments + sum(data[start + 27 : start + 27 + segments])


def _repair_mp3(data: bytes | mmap.mmap) -> list[Encoded] | None:
    """One stream for each run of frames of the same form; None if a Xing header tells the length of the whole file."""
    first = _next_frame(data, 0)
    if first is None:
        return None  # free format, or another layer
    start, frame = first
    if (length := _announced_bytes(data[start : start + frame.size])) is not None:
        end = start + length
        if end >= len(data) or _next_frame(data, end) is None:
            return None
    runs: list[tuple[tuple[int, int, bool], list[tuple[int, int]]]] = []
    for position, frame in _frames(data):
        if not runs or runs[-1][0] != frame.form:
            runs.append((frame.form, []))
        runs[-1][1].append((position, frame.size))
    return [_with_length(data, frames) for _, frames in runs] or None


def _frames(data: bytes | mmap.mmap) -> Iterator[tuple[int, _Frame]]:
    """Position and header of each complete frame with audio."""
    position, size = 0, len(data)
    while position + 4 <= size:
        frame = _frame(int.from_bytes(data[position : position + 4], "big"))
        if frame is None:
            following = _next_frame(data, position)
            if following is None:
                return
            position, frame = following
        if position + frame.size > size:
            return
        head = data[position : position + frame.size][_INFO_OFFSETS]
        if not any(tag in head for tag in _INFO_TAGS):
            yield position, frame
        position += frame.size


def _next_frame(data: bytes | mmap.mmap, position: int) -> tuple[int, _Frame] | None:
    """The first frame from `position` on that is followed by another of its form, or by the end."""
    while data[position : position + 3] == b"ID3":  # its pictures may hold what looks like a frame
        length = data[position + 6 : position + 10]
        position += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(length, (21, 14, 7, 0), strict=False))
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 4:
        frame = _frame(int.from_bytes(data[position : position + 4], "big"))
        if frame is not None:
            end = position + frame.size
            following = _frame(int.from_bytes(data[end : end + 4], "big")) if end + 4 <= len(data) else None
            if end == len(data) or (following is not None and following.form == frame.form):
                return position, frame
        position += 1
    return None


def _frame(header: int) -> _Frame | None:
    """Parse a frame header of 32 bits; None if it is none of layer III."""
    return _parse(header & 0xFFFEFEC0)  # what does not matter is masked: checksum, private bit, mode, emphasis


@lru_cache(maxsize=4096)
def _parse(header: int) -> _Frame | None:
    version, layer, rate = header >> 19 & 3, header >> 17 & 3, header >> 10 & 3
    bitrate, padding, mode = header >> 12 & 15, header >> 9 & 1, header >> 6 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or rate == 3 or bitrate in (0, 15):
        return None
    rate_hz = _RATES_HZ[version][rate]
    bits = (144000 if version == 3 else 72000) * _KBPS[3 if version == 3 else 2][bitrate]
    return _Frame(bits // rate_hz + padding, (version, rate_hz, mode == 3))


def _announced_bytes(frame: bytes) -> int | None:
    """The size of the stream, with this frame, that a Xing frame tells; None if it is not one, or lacks a number."""
    for tag in _INFO_TAGS[:2]:
        at = frame[_INFO_OFFSETS].find(tag)
        if at >= 0 and len(frame) >= (at := at + _INFO_OFFSETS.start) + 16:
            flags, _, size = struct.unpack(">3I", frame[at + 4 : at + 16])
            return size if flags & 3 == 3 else None
    return None


def _with_length(data: bytes | mmap.mmap, frames: list[tuple[int, int]]) -> bytes:
    """The frames, after a Xing frame that tells their number and size."""
    header = int.from_bytes(data[frames[0][0] : frames[0][0] + 4], "big")
    version, mono = header >> 19 & 3, header >> 6 & 3 == 3
    header = header & ~0xF200 | 0x10000 | (9 if version == 3 else 8) << 12  # no checksum; 128 or 64 kbit/s
    frame = _frame(header)
    assert frame is not None
    side_information = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    size = sum(length for _, length in frames) + frame.size
    info = header.to_bytes(4, "big") + bytes(side_information) + b"Xing" + struct.pack(">3I", 3, len(frames), size)
    audio = (data[position : position + length] for position, length in frames)
    return b"".join([info.ljust(frame.size, b"\0"), *audio])
