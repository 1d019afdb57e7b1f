"""The endless sequence of batch requests of one process, from a position, for map-style sources or a stream."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from src.audio.decode import SAMPLE_RATE, AudioError, Encoded, probe
from src.data.pretraining.batch import BatchRequest
from src.data.pretraining.order import (
    Batching,
    Crops,
    Order,
    crop_seeds,
    crops_of,
    hash_integers,
    make_batches,
    place_crops,
)
from src.data.pretraining.read_ahead import Group, read_ahead
from src.data.sources.audio_column import encoded_clip
from src.errors import UserError

_Clip = tuple[str, Encoded, float]  # in a stream: name, bytes or path, seconds
_AHEAD_BYTES = 2**30  # of decoded crops that all workers of a process may keep
_MIN_CLIPS = 4  # sent with a request of a stream, as replacements if one does not decode


class OrderSampler:
    """Requests for map-style sources.

    If the batch size has changed, the position may fall within a batch; the window then continues with the next one.

    Args:
        position: crops consumed by all processes before the sequence starts.
        workers: that take requests in turn; each decodes a clip once per window, where `decoding`.
        decoding: False where samples are only read, from the decoded cache.
    """

    def __init__(
        self, order: Order, batching: Batching, rank: int, position: int, workers: int = 0, decoding: bool = False
    ) -> None:
        self.order, self.batching, self.rank, self.position = order, batching, rank, position
        self.workers, self.decoding = max(1, workers), decoding

    def __iter__(self) -> Iterator[BatchRequest]:
        size = self.order.window_size(self.batching)
        window, consumed = divmod(self.position, size)
        while True:
            crops = self.order.crops(np.arange(window * size, (window + 1) * size))
            batches = make_batches(crops, self.batching, hash_integers(self.order.seed, window))
            ends = np.cumsum([len(batch) for batch in batches])
            done = int(np.searchsorted(ends - [len(batch) for batch in batches], consumed))
            mine = [batch.take(np.arange(self.rank, len(batch), self.batching.world_size)) for batch in batches]
            groups = self._groups(mine, done)
            for number in range(done, len(mine)):
                yield BatchRequest(mine[number], window * size + int(ends[number]), None, (), groups[number], window)
            window, consumed = window + 1, 0

    def _groups(self, batches: list[Crops], done: int) -> list[list[Group]]:
        """What to decode together with each batch of a window: for each worker that which it will be asked for."""
        found: list[list[Group]] = [[] for _ in batches]
        for worker in range(min(self.workers, len(batches)) if self.decoding else 0):
            mine = slice(worker, None, self.workers)
            most_seconds = _AHEAD_BYTES / self.workers / (4 * SAMPLE_RATE)
            found[mine] = read_ahead(batches[mine], len(range(worker, done, self.workers)), most_seconds)
        return found


class StreamSampler:
    """Requests for a Hugging Face stream, read sequentially in the main process and shuffled in windows.

    Each rank reads its own part of the stream and counts its own crops. The state is the stream's at the start of the
    current window, so a resume reads that window again. A window ends where the stream ends.

    Args:
        open_stream: returns the `datasets.IterableDataset` from its start. column: audio, with {"bytes", "path"}.
        window_clips: clips to read and shuffle together. seed: differs between ranks.
        position: crops this rank has consumed. state: of `state_at` at that position; None starts at the beginning.
    """

    def __init__(
        self, open_stream: Callable[[], Any], column: str, window_clips: int, crop_seconds: float, batching: Batching,
        seed: int, position: int = 0, state: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.open_stream, self.column, self.window_clips = open_stream, column, window_clips
        self.crop_seconds, self.batching, self.seed, self.position = crop_seconds, batching, seed, position
        self._windows = [state or {"window": 0, "position": 0, "stream": None}]

    def state_at(self, position: int) -> dict[str, Any]:
        """State of the window that contains `position`; earlier windows are dropped."""
        while len(self._windows) > 1 and self._windows[1]["position"] <= position:
            self._windows.pop(0)
        return self._windows[0]

    def __iter__(self) -> Iterator[BatchRequest]:
        at = self.state_at(self.position)
        self._windows = [at]
        stream = self.open_stream()
        if at["stream"] is not None:
            stream.load_state_dict(at["stream"])
        rows = iter(stream)
        bad: list[tuple[str, str]] = []
        while True:
            num_rows, encoded = self._read_window(rows, bad)
            position = at["position"]
            for batch in make_batches(
                self._crops(encoded, at["window"]), self.batching, hash_integers(self.seed, at["window"])
            ):
                position += len(batch)
                if position > self.position:
                    yield self._request(batch, position, encoded, bad)
                    bad = []
            ended = num_rows < self.window_clips
            if ended and position == 0:
                name, reason = bad[0] if bad else (self.column, "no rows")
                raise UserError(
                    f"the stream has no readable clip (the first, {name}: {reason}); check its audio_column"
                )
            state = None if ended else stream.state_dict()
            if ended:
                stream = self.open_stream()
                rows = iter(stream)
            at = {"window": at["window"] + 1, "position": position, "stream": state}
            self._windows.append(at)

    def _read_window(self, rows: Iterator[dict], bad: list[tuple[str, str]]) -> tuple[int, list[_Clip]]:
        """The number of rows read, and the clips with a readable header; the others are added to `bad`."""
        num_rows, clips = 0, []
        for row in itertools.islice(rows, self.window_clips):
            num_rows += 1
            audio, name = row[self.column], "row without audio"
            try:
                encoded = encoded_clip(audio)
                content = encoded if isinstance(encoded, bytes) else str(encoded).encode(errors="replace")
                name = audio.get("path") or hashlib.sha256(content).hexdigest()[:16]
                clips.append((name, encoded, probe(encoded).seconds))
            except AudioError as error:
                bad.append((name, str(error)))
        return num_rows, clips

    def _crops(self, encoded: list[_Clip], window: int) -> Crops:
        seconds = np.array([length for _, _, length in encoded], dtype=float)
        count = crops_of(seconds, self.crop_seconds)
        clip = np.repeat(np.arange(len(seconds)), count)
        number = np.arange(len(clip)) - np.repeat(np.cumsum(count) - count, count)
        seed = crop_seeds(self.seed, 0, np.full(len(clip), window), clip, number)
        start, length = place_crops(seconds[clip], count[clip], number, self.crop_seconds, seed)
        return Crops(np.zeros_like(clip), clip, start, length, seed)

    def _request(self, batch: Crops, position: int, encoded: list[_Clip], bad: list[tuple[str, str]]) -> BatchRequest:
        used, clip = np.unique(batch.clip, return_inverse=True)
        if len(used) < _MIN_CLIPS:
            spare = np.setdiff1d(np.arange(len(encoded)), used)
            used = np.append(used, spare[: _MIN_CLIPS - len(used)])
        crops = dataclasses.replace(batch, clip=clip)
        return BatchRequest(crops, position, [encoded[i][:2] for i in used], tuple(bad))
