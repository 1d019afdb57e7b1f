"""What a worker does: turn requests into batches. It has no state, so the number of workers changes nothing."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from src.audio.decode import SAMPLE_RATE, AudioError, Encoded, decode
from src.data.pad import pad
from src.data.pretraining.order import Crops, uniform
from src.data.sources.source import Source

MAX_TRIES = 100  # clips tried in place of an unreadable one
_NEIGHBOURS = 10  # of them lie beside it; the others anywhere, for a whole shard may be gone


class BatchRequest(NamedTuple):
    """A batch to build. position: clips consumed by all processes once it is trained on. encoded: the clips' bytes
    with their names, where the source is a stream; None where `crops` number clips of a source. bad: (name, reason) of
    clips of the stream that were met since the last request."""

    crops: Crops
    position: int
    encoded: list[tuple[str, Encoded]] | None = None
    bad: tuple[tuple[str, str], ...] = ()


class CropDataset(Dataset):
    """`batches[request]` is the batch: waveform (B, T), zero-padded; length (B,) samples; seed (B,); source (B,), as
    the sources are numbered; key, the names; position; bad, (name, reason) of clips that could not be decoded.

    Args:
        sources: numbered as in the requests. pad_seconds: pad every clip with zeros that count as sound; None pads to
            the longest with zeros that do not. gain_db: louder or softer by up to this much; None leaves the level.
    """

    def __init__(
        self,
        sources: list[Source],
        pad_seconds: float | None = None,
        gain_db: float | None = None,
    ) -> None:
        self.sources, self.pad_seconds, self.gain_db = sources, pad_seconds, gain_db

    def __getitem__(self, request: BatchRequest) -> dict[str, Any]:
        crops = request.crops
        bad = list(request.bad)
        waveforms, keys = [], []
        gains = uniform(crops.seed, 2) * 2 - 1
        for row in range(len(crops)):
            waveform, key = self._clip(request, row, bad)
            if self.gain_db is not None:
                waveform = waveform * np.float32(10 ** (gains[row] * self.gain_db / 20))
            waveforms.append(torch.from_numpy(np.ascontiguousarray(waveform)))
            keys.append(key)
        batch = pad(waveforms, self.pad_seconds)
        batch.update(
            seed=torch.from_numpy(crops.seed),
            source=torch.from_numpy(crops.source),
            key=keys,
            position=request.position,
            bad=bad,
        )
        return batch

    def _clip(self, request: BatchRequest, row: int, bad: list[tuple[str, str]]) -> tuple[np.ndarray, str]:
        """The waveform of a row. An unreadable clip is replaced by the next readable one: no batch is short."""
        crops = request.crops
        start, seconds = float(crops.start_seconds[row]), float(crops.seconds[row])
        most_samples = round(seconds * SAMPLE_RATE)
        clip, source = int(crops.clip[row]), None
        if request.encoded is None:
            source = self.sources[crops.source[row]]
        count = len(source) if source is not None else len(request.encoded or [])
        for attempt in range(min(count, MAX_TRIES)):
            number = replacement(clip, attempt, count)
            name = source.name(number) if source is not None else request.encoded[number][0]  # type: ignore[index]
            begin = start if attempt == 0 else 0.0
            try:
                if source is not None:
                    waveform = source.waveform(number, begin, seconds)
                else:
                    waveform = decode(request.encoded[number][1], begin, seconds)  # type: ignore[index]
            except AudioError as error:
                bad.append((name, str(error)))
                continue
            return waveform[:most_samples], name
        name, reason = bad[-1]
        raise AudioError(f"{min(count, MAX_TRIES)} clips in a row could not be read, the last {name}: {reason}")


def replacement(clip: int, attempt: int, count: int) -> int:
    """The clip to try in place of `clip` (attempt 0) out of `count`: its neighbors first, then others."""
    if attempt < _NEIGHBOURS or count <= MAX_TRIES:
        return (clip + attempt) % count
    return (clip + attempt * (count // MAX_TRIES)) % count
