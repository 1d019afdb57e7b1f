"""From batch requests to batches, in the workers. These keep decoded crops for later requests, and nothing else: the
batch of a request is the same in any worker."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from src.audio.decode import SAMPLE_RATE, AudioError, Encoded, decode
from src.data.pad import pad
from src.data.pretraining.order import Crops, uniform
from src.data.pretraining.read_ahead import Group
from src.data.sources.source import Source
from src.errors import UserError

MAX_TRIES = 100  # clips tried for one crop, the requested one included
_NEIGHBORS = 10  # of these are adjacent; the others are spread out, as a whole shard may be unreadable


class BatchRequest(NamedTuple):
    """A batch to make. position: crops consumed once it is trained on. encoded: (name, encoded clip) of a stream,
    indexed by `crops`; None if `crops` index the clips of a source. bad: (name, reason) of unreadable clips in the
    stream since the last request. groups: of the `window` or the next, to decode now and to keep until their batch is
    made."""

    crops: Crops
    position: int
    encoded: list[tuple[str, Encoded]] | None = None
    bad: tuple[tuple[str, str], ...] = ()
    groups: Sequence[Group] = ()
    window: int = 0


class CropDataset(Dataset):
    """`dataset[request]` is the batch: waveform (B, T), zero-padded; length (B,) samples; samples, the same as a list,
    which stays on the host when the batch goes to a GPU; seed (B,); source (B,),
    indices into `sources`; key, the clip names; position; bad, (name, reason) of clips that could not be decoded.

    Args:
        sources: indexed by the requests. pad_seconds: pad every clip to this length, counted as audio; None pads to
            the longest clip, not counted. gain_db: maximum random gain, up or down; None leaves the level.
        replace_bad: for training, another clip stands in for one that cannot be read, so that no batch is short.
            Otherwise it is left out: a score must not count another clip twice.
    """

    def __init__(
        self,
        sources: list[Source],
        pad_seconds: float | None = None,
        gain_db: float | None = None,
        replace_bad: bool = True,
    ) -> None:
        self.sources, self.pad_seconds, self.gain_db, self.replace_bad = sources, pad_seconds, gain_db, replace_bad
        self._kept: dict[tuple, np.ndarray] = {}  # crops, by (window, source, clip), (start_seconds, seconds)
        self._window = -1

    def __getitem__(self, request: BatchRequest) -> dict[str, Any]:
        crops = request.crops
        self._read_ahead(request)
        bad = list(request.bad)
        waveforms, keys, kept = [], [], []
        gains = uniform(crops.seed, 2) * 2 - 1
        for row in range(len(crops)):
            found = self._clip(request, row, bad)
            if found is None:
                continue
            waveform, key = found
            kept.append(row)
            if self.gain_db is not None:
                waveform = waveform * np.float32(10 ** (gains[row] * self.gain_db / 20))
            waveforms.append(torch.from_numpy(np.ascontiguousarray(waveform)))
            keys.append(key)
        if not kept:
            name, reason = bad[-1]
            raise UserError(f"none of the clips of a batch could be read, the last {name}: {reason}; run it again")
        crops, batch = crops.take(np.array(kept)), pad(waveforms, self.pad_seconds)
        batch.update(
            samples=batch["length"].tolist(),
            seed=torch.from_numpy(crops.seed),
            source=torch.from_numpy(crops.source),
            key=keys,
            position=request.position,
            bad=bad,
        )
        return batch

    def _read_ahead(self, request: BatchRequest) -> None:
        """Decode and keep the crops of the request's groups; those that can't be are met again in their batch."""
        if request.window != self._window:
            self._kept = {key: crop for key, crop in self._kept.items() if key[0][0] == request.window}
            self._window = request.window
        for window, source, clip, ranges, wanted in request.groups:
            for span, waveform in zip(ranges, self.sources[source].crops(clip, ranges), strict=True):
                if span in wanted and not isinstance(waveform, AudioError):
                    self._kept[(window, source, clip), span] = waveform

    def _clip(self, request: BatchRequest, row: int, bad: list[tuple[str, str]]) -> tuple[np.ndarray, str] | None:
        """Waveform and name of a row, of the next readable clip if it cannot be read; None without `replace_bad`."""
        crops = request.crops
        number_of_source, clip = int(crops.source[row]), int(crops.clip[row])
        start, seconds = float(crops.start_seconds[row]), float(crops.seconds[row])
        most_samples = round(seconds * SAMPLE_RATE)
        source = self.sources[number_of_source] if request.encoded is None else None
        count = len(source) if source is not None else len(request.encoded or [])
        for attempt in range(min(count, MAX_TRIES) if self.replace_bad else 1):
            number = replacement(clip, attempt, count)
            name = source.name(number) if source is not None else request.encoded[number][0]  # type: ignore[index]
            begin = start if attempt == 0 else 0.0
            try:
                if source is not None:
                    key = (request.window, number_of_source, clip), (start, seconds)
                    kept = self._kept.pop(key, None) if attempt == 0 else None
                    waveform = source.waveform(number, begin, seconds) if kept is None else kept
                else:
                    waveform = decode(request.encoded[number][1], begin, seconds)  # type: ignore[index]
            except AudioError as error:
                bad.append((name, str(error)))
                continue
            return waveform[:most_samples], name
        if not self.replace_bad:
            return None
        name, reason = bad[-1]
        raise AudioError(f"{min(count, MAX_TRIES)} clips in a row could not be read, the last {name}: {reason}")


def replacement(clip: int, attempt: int, count: int) -> int:
    """The clip to try at `attempt`, out of `count`: `clip` at 0, then its neighbors, then clips spread over all."""
    if attempt < _NEIGHBORS or count <= MAX_TRIES:
        return (clip + attempt) % count
    return (clip + attempt * (count // MAX_TRIES)) % count
