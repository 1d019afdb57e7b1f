"""The endless sequence of batch requests of one process, from a position, for map-style sources or a stream."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

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
from src.data.pretraining.read_ahead import Group, bring_forward, read_ahead
from src.data.sources.audio_column import encoded_clip
from src.errors import UserError

_Clip = tuple[str, Encoded, float]  # in a stream: name, bytes or path, seconds
_AHEAD_BYTES = 2**29  # of decoded crops that all workers of a process may keep of a window, and again of the next
_MIN_CLIPS = 4  # sent with a request of a stream, as replacements if one does not decode


class _Window(NamedTuple):
    """Batches of a process, the positions after them, how many need not be made, and what to decode with each."""

    number: int
    batches: list[Crops]
    ends: list[int]
    done: int
    groups: list[list[Group]]


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
        window = self._window(*divmod(self.position, self.order.window_size(self.batching)))
        sent = 0  # requests; the loader gives them to the workers in turn
        while True:
            following = self._window(window.number + 1, 0)
            self._bring_forward(window, following, sent)
            for number in range(window.done, len(window.batches)):
                yield BatchRequest(
                    window.batches[number], window.ends[number], None, (), window.groups[number], window.number
                )
            sent += len(window.batches) - window.done
            window = following

    def _bring_forward(self, window: _Window, following: _Window, sent: int) -> None:
        """Move groups of the following window to the batches of this one that the same worker makes."""
        following_sent = sent + len(window.batches) - window.done
        for worker in range(self.workers if self.decoding else 0):
            now = slice(window.done + (worker - sent) % self.workers, None, self.workers)
            then = slice((worker - following_sent) % self.workers, None, self.workers)
            slots = len(window.groups[now])
            early, following.groups[then] = bring_forward(following.groups[then], slots, self._most_seconds)
            for groups, more in zip(window.groups[now], early, strict=True):
                groups += more

    @property
    def _most_seconds(self) -> float:
        """Of decoded audio, in a worker."""
        return _AHEAD_BYTES / self.workers / (4 * SAMPLE_RATE)

    def _window(self, number: int, consumed: int) -> _Window:
        size = self.order.window_size(self.batching)
        crops = self.order.crops(np.arange(number * size, (number + 1) * size))
        batches = make_batches(crops, self.batching, hash_integers(self.order.seed, number))
        ends = np.cumsum([len(batch) for batch in batches])
        done = int(np.searchsorted(ends - [len(batch) for batch in batches], consumed))
        mine = [batch.take(np.arange(self.rank, len(batch), self.batching.world_size)) for batch in batches]
        groups: list[list[Group]] = [[] for _ in batches]
        for worker in range(min(self.workers, len(batches)) if self.decoding else 0):
            its = slice(worker, None, self.workers)
            its_done = len(range(worker, done, self.workers))
            groups[its] = read_ahead(number, mine[its], its_done, self._most_seconds)
        return _Window(number, mine, [number * size + int(end) for end in ends], done, groups)


class StreamSampler:
    """Requests for a Hugging Face stream, read sequentially in the main process and shuffled in windows.

    Each rank reads its own part of the stream and counts its own crops. A thread reads the next window while one is
    used. The state is the stream's at the start of the current window, so a resume reads that window again. A window
    ends where the stream ends.

    Args:
        open_stream: returns the `datasets.IterableDataset` from its start. column: audio, with {"bytes", "path"}.
        window_clips: crops to shuffle together; more by those of one clip at most. seed: differs between ranks.
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
        stop = threading.Event()
        windows = self._read(at, stop)
        bad: list[tuple[str, str]] = []
        with ThreadPoolExecutor(1) as thread:
            try:
                following = thread.submit(next, windows)
                while True:
                    at, encoded, unreadable = following.result()
                    following = thread.submit(next, windows)
                    self._windows += [at] if at is not self._windows[-1] else []
                    bad += unreadable
                    position = at["position"]
                    crops = self._crops(encoded, at["window"])
                    for batch in make_batches(crops, self.batching, hash_integers(self.seed, at["window"])):
                        position += len(batch)
                        if position > self.position:
                            yield self._request(batch, position, encoded, bad)
                            bad = []
            finally:
                stop.set()

    def _read(self, at: dict[str, Any], stop: threading.Event) -> Iterator[tuple[dict, list[_Clip], list]]:
        """The windows of the stream from a state, endless: state, clips, and (name, reason) of unreadable ones."""
        stream = self.open_stream()
        if at["stream"] is not None:
            stream.load_state_dict(at["stream"])
        rows = iter(stream)
        while True:
            clips: list[_Clip] = []
            bad: list[tuple[str, str]] = []
            count = 0  # crops, and unreadable clips
            while count < self.window_clips and not stop.is_set() and (row := next(rows, None)) is not None:
                clip = _read_header(row[self.column], bad)
                count += 1 if clip is None else int(crops_of(np.array(clip[2]), self.crop_seconds))
                clips += [] if clip is None else [clip]
            ended = count < self.window_clips
            if ended and at["position"] == 0 and not clips:
                name, reason = bad[0] if bad else (self.column, "no rows")
                raise UserError(
                    f"the stream has no readable clip (the first, {name}: {reason}); check its audio_column"
                )
            yield at, clips, bad
            state = None if ended else stream.state_dict()
            if ended:
                stream = self.open_stream()
                rows = iter(stream)
            at = {"window": at["window"] + 1, "position": at["position"] + count - len(bad), "stream": state}

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


def _read_header(audio: dict[str, Any], bad: list[tuple[str, str]]) -> _Clip | None:
    """A clip of a stream; None if its header cannot be read, and its name and the reason are added to `bad`."""
    name = "row without audio"
    try:
        encoded = encoded_clip(audio)
        content = encoded if isinstance(encoded, bytes) else str(encoded).encode(errors="replace")
        name = audio.get("path") or hashlib.sha256(content).hexdigest()[:16]
        return name, encoded, probe(encoded).seconds
    except AudioError as error:
        bad.append((name, str(error)))
        return None
