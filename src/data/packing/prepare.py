"""Decode audio, to mono at one rate, and encode it anew, cut into segments: cheap to decode in training.

Loudness stays: what exceeds full scale is clipped there, and its peak is reported.
"""

import io
import json
import math
import time
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile

from src.audio.arrays import MOST_FLOAT
from src.audio.decode import AudioError, Encoded, decode_blocks
from src.data.sources.annotations import labels_cell
from src.data.sources.label_table import LABEL_COLUMNS, Row, read_rows
from src.data.sources.packed_labels import read_events
from src.errors import UserError

Audio = Literal["keep", "flac", "opus", "pcm16"]
OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)
_FORMATS = {  # suffix, and format and subtype in soundfile
    "flac": (".flac", "FLAC", "PCM_16"), "opus": (".opus", "OGG", "OPUS"), "pcm16": (".wav", "WAV", "PCM_16"),
}  # fmt: skip
_BLOCK_SECONDS = 30.0  # decoded and encoded at a time
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Preparation(NamedTuple):
    """audio: keep stores files unchanged. sample_rate: in Hz. segment_seconds: of each segment; None cuts nothing."""

    audio: Audio = "keep"
    sample_rate: int = 16000
    segment_seconds: float | None = None

    @property
    def suffix(self) -> str:
        return _FORMATS[self.audio][0]


KEEP = Preparation()


class Segment(NamedTuple):
    """data: encoded. peak: the largest absolute sample before it was clipped. core_seconds: spent on decoding it."""

    data: bytes
    start_seconds: float
    seconds: float
    peak: float
    core_seconds: float


def choose_preparation(audio: Audio, sample_rate: int | None, segment_seconds: float | None) -> Preparation:
    """The preparation that the options of the command say.

    Raises:
        UserError: a number out of range; options that have no effect.
    """
    if audio == "keep":
        given = {"--sample-rate": sample_rate, "--segment-seconds": segment_seconds}
        if name := next((name for name, value in given.items() if value is not None), None):
            raise UserError(f"{name} needs --audio flac, opus or pcm16; with --audio keep files are stored unchanged")
        return KEEP
    rate = 16000 if sample_rate is None else sample_rate
    if not 4000 <= rate <= 192_000:
        raise UserError(f"--sample-rate {rate} is out of range; it must be 4000 to 192000")
    if audio == "opus" and rate not in OPUS_RATES_HZ:
        raise UserError(f"--sample-rate {rate}: Opus has {', '.join(map(str, OPUS_RATES_HZ))}; choose one of them")
    if segment_seconds is not None and not 0.1 <= segment_seconds < math.inf:
        raise UserError(f"--segment-seconds {segment_seconds} is out of range; it must be at least 0.1")
    return Preparation(audio, rate, segment_seconds)


def prepared(file: Encoded, preparation: Preparation) -> Iterator[Segment]:
    """The segments of a clip, in order; together they are the whole clip, without gaps. Without a length, one.

    Memory does not grow with the length of the clip, but with that of the encoded segment.

    Raises:
        AudioError: as `decode_blocks`, when the damage is reached; floats that were never scaled.
    """
    rate = preparation.sample_rate
    most = None if preparation.segment_seconds is None else max(1, round(preparation.segment_seconds * rate))
    blocks = _Timed(decode_blocks(file, _BLOCK_SECONDS, rate))
    block, begin = next(blocks, None), 0
    while block is not None:
        encoder, count, peak = _Encoder(preparation), 0, 0.0
        while block is not None and (most is None or count < most):
            some = block if most is None else block[: most - count]
            peak = max(peak, float(np.abs(some).max()))
            if peak > MOST_FLOAT:
                raise AudioError(f"samples of up to {peak:.6g}; they must be in [-1, 1]")
            encoder.write(some)
            count += len(some)
            block = block[len(some) :] if len(some) < len(block) else next(blocks, None)
        yield Segment(encoder.data(), begin / rate, count / rate, peak, blocks.taken())
        begin += count


class _Timed:
    """Blocks, and the seconds of this thread's core that they took."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks, self._seconds = blocks, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        started = time.thread_time()
        try:
            return next(self._blocks)
        finally:
            self._seconds += time.thread_time() - started

    def taken(self) -> float:
        """Since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _Encoder:
    """Samples, fp32, to an encoded file in memory; equal samples give equal bytes."""

    def __init__(self, preparation: Preparation) -> None:
        _, container, codec = _FORMATS[preparation.audio]
        self._file, self._is_opus = io.BytesIO(), codec == "OPUS"
        self._sound = soundfile.SoundFile(self._file, "w", preparation.sample_rate, 1, codec, format=container)

    def write(self, samples: np.ndarray) -> None:
        if self._is_opus:
            self._sound.write(np.clip(samples, -1.0, 1.0))
        else:  # as they are read: 16-bit audio at this rate stays bit-exact
            self._sound.write(np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16))

    def data(self) -> bytes:
        self._sound.close()
        data = self._file.getvalue()
        return _with_serial(data, 1) if self._is_opus else data


def _with_serial(data: bytes, serial: int) -> bytes:
    """An Ogg file with this serial number, where libsndfile writes a random one."""
    result, position = bytearray(data), 0
    while position < len(result):
        segments = result[position + 26]
        end = position + 27 + segments + sum(result[position + 27 : position + 27 + segments])
        result[position + 14 : position + 18] = serial.to_bytes(4, "little")
        result[position + 22 : position + 26] = bytes(4)
        result[position + 22 : position + 26] = _ogg_checksum(bytes(result[position:end])).to_bytes(4, "little")
        position = end
    return bytes(result)


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 with zlib's polynomial, most significant bit first, from 0."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED), "big")


def segment_columns(columns: dict[str, str], parent: str, segment: Segment) -> dict[str, Any]:
    """The columns of a segment: those of the clip, its parent, and where it starts.

    Events are cut at the ends of the segment; of the labels that have events, those with one in the segment stay. With
    labels, the segments of a clip are a group, which stays in one split.
    """
    lowered = {name.lower(): name for name in columns}
    kept = dict(columns)
    label = next((lowered[name] for name in LABEL_COLUMNS if name in lowered), None)
    if label is not None:
        if not columns.get(lowered.get("group", ""), ""):
            kept[lowered.get("group", "group")] = parent
        if columns.get(lowered.get("events", ""), ""):
            kept |= _cut_events(columns[label], columns[lowered["events"]], parent, segment, label, lowered["events"])
    return {**kept, "parent": parent, "start_seconds": segment.start_seconds}


def _cut_events(
    labels: str, events: str, parent: str, segment: Segment, label_column: str, event_column: str
) -> dict[str, str]:
    start, end = segment.start_seconds, segment.start_seconds + segment.seconds
    row = Row(parent, {"label": labels, "events": events})
    names = read_rows([row])[0].labels
    whole = read_events(row, names)
    cut = [
        (max(0.0, onset - start), min(end, offset) - start, name)
        for onset, offset, name in whole
        if onset < end and offset > start
    ]
    absent = {name for _, _, name in whole} - {name for _, _, name in cut}
    return {
        label_column: labels_cell([name for name in names if name not in absent]),
        event_column: json.dumps(cut, ensure_ascii=False) if cut else "",
    }
