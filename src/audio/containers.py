"""Sound that libsndfile does not read, through PyAV (FFmpeg): AAC, and the audio of MP4, Matroska, WebM and ASF files.

An optional dependency: `pip install "audio-encoder[av]"`. `ContainerSound` is used as a `soundfile.SoundFile`.
"""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from src.audio.error import AudioError
from src.audio.streams import Encoded

CONTAINER_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac", ".webm", ".weba", ".mkv", ".mka", ".wma", ".wmv", ".asf",
)  # fmt: skip
INSTALL = 'pip install "audio-encoder[av]"'
HAS_AV = importlib.util.find_spec("av") is not None
_UNKNOWN_FRAMES = 2**62  # readers stop at the end of the sound
_PREROLL_FRAMES = 8192  # decoded before a range and dropped: AAC overlaps its blocks, and extends the band from earlier
_MAX_SHORT_SECONDS = 0.5  # that the sound may be shorter than its header says
_MATROSKA, _ASF = b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75"
_FULL_SCALE = {"u1": 2.0**7, "i2": 2.0**15, "i4": 2.0**31}


def is_container(file: Encoded) -> bool:
    """Whether the first bytes are those of a format that PyAV reads here."""
    try:
        head = file[:12] if isinstance(file, bytes) else _head(file)
    except OSError:
        return False
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide") or head[:4] in (_MATROSKA, _ASF) or _is_adts(head)


def _head(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(12)


def _is_adts(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


class ContainerSound:
    """The first audio stream of a file: `frames`, `samplerate`, `channels`, `subtype`, `seek`, `read`.

    Frame 0 is the first one that FFmpeg plays: the encoder's delay is left out where the file tells it. In an MP4,
    which counts in samples, `seek` jumps; elsewhere, what lies before is decoded and dropped, as times are rounded.
    Where an AAC encoder left noise to the decoder, that noise depends on where decoding starts.

    Raises:
        AudioError: no PyAV, no sound, damaged data.
    """

    subtype = "AV"

    def __init__(self, file: Encoded) -> None:
        if not HAS_AV:
            raise AudioError(f"a format that needs PyAV; {INSTALL}")
        import av

        self._errors = av.error.FFmpegError
        try:
            self._container: Any = av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file))
        except (self._errors, UnicodeError) as error:
            raise AudioError(f"not readable as audio ({_reason(error)})") from None
        audio: Any = self._container.streams.audio
        if not audio or not audio[0].codec_context:
            self.close()
            raise AudioError("no sound in it")
        self._stream = audio[0]
        self.samplerate, self.channels = self._stream.codec_context.sample_rate, self._stream.codec_context.channels
        base, duration = self._stream.time_base, self._stream.duration
        self._exact = duration is not None and base * self.samplerate == 1
        self.frames: int = duration if self._exact else _UNKNOWN_FRAMES
        self._position, self._rest = 0, np.zeros((0, self.channels), np.float32)
        self._blocks = self._decode()

    def count_frames(self) -> int:
        """From the header; of raw AAC, or a file without a length, from its packets, which leaves it at the end."""
        if self._exact:
            return self.frames
        if self._container.format.name != "aac" and self._container.duration:
            return round(self._container.duration / 1_000_000 * self.samplerate)
        try:
            ticks = sum(packet.duration or 0 for packet in self._container.demux(self._stream))
        except self._errors as error:
            raise AudioError(f"damaged data ({_reason(error)})") from None
        return round(ticks * self._stream.time_base * self.samplerate)

    def seek(self, frame: int) -> None:
        """Forwards, to be called before the first `read`."""
        if self._exact and frame > 2 * _PREROLL_FRAMES:
            self._container.seek((self._stream.start_time or 0) + frame - _PREROLL_FRAMES, stream=self._stream)
            self._position, self._blocks = frame, self._decode(frame)
        while self._position < frame and len(self.read(min(frame - self._position, 2**20))):
            pass

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """Up to `frames` frames, (T, C) fp32."""
        frames = max(0, min(frames, self.frames - self._position))
        parts, count = [self._rest], len(self._rest)
        while count < frames and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            count += len(block)
        whole = np.concatenate(parts)
        self._position += min(frames, count)
        if count < frames and self._exact and self._position < self.frames - _MAX_SHORT_SECONDS * self.samplerate:
            raise AudioError("damaged data (it ends early)")
        self._rest = whole[frames:]
        return whole[:frames]

    def _decode(self, frame: int | None = None) -> Iterator[np.ndarray]:
        """Blocks (T, C) from where the container stands on, without what lies before `frame`."""
        origin = self._stream.start_time or 0
        try:
            for packet in self._container.demux(self._stream):
                for decoded in packet.decode():
                    early = 0 if frame is None else max(0, frame - (decoded.pts - origin))
                    if early < decoded.samples:
                        yield self._samples(decoded)[early:]
        except self._errors as error:
            raise AudioError(f"damaged data ({_reason(error)})") from None

    def _samples(self, frame: Any) -> np.ndarray:
        """(T, C), in [-1, 1]."""
        array, channels = frame.to_ndarray(), frame.layout.nb_channels
        if (frame.sample_rate, channels) != (self.samplerate, self.channels):
            raise AudioError("a sample rate, or a number of channels, that changes")
        array = array.T if frame.format.is_planar else array.reshape(-1, channels)
        if array.dtype.kind == "f":
            return array.astype(np.float32, copy=False)
        middle = 128 if array.dtype.kind == "u" else 0
        return ((array.astype(np.float64) - middle) / _FULL_SCALE[array.dtype.str[1:]]).astype(np.float32)

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "ContainerSound":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
