"""A stream is read one window ahead, in a thread, and no further; a window is counted in crops."""

import io
import threading
import time

import numpy as np
import pytest
import soundfile

from src.audio.decode import SAMPLE_RATE
from src.data.pretraining.order import Batching
from src.data.pretraining.sampler import StreamSampler
from src.errors import UserError

WINDOW = 12


class Stream:
    """Endless, or of `rows`; counts the rows that were read in all. seconds: of each clip."""

    def __init__(self, seconds=1.0, rows=None, error_at=None):
        file = io.BytesIO()
        soundfile.write(file, np.full(round(seconds * SAMPLE_RATE), 0.1), SAMPLE_RATE, format="FLAC")
        self.content, self.rows, self.error_at, self.read = file.getvalue(), rows, error_at, 0

    def __iter__(self):
        number = 0
        while self.rows is None or number < self.rows:
            self.read += 1
            if self.read == self.error_at:
                raise OSError("connection lost")
            yield {"audio": {"bytes": self.content, "path": f"{number}.flac"}}
            number += 1

    def state_dict(self):
        return {"read": self.read}


def requests_of(stream, crop_seconds=1.0):
    return iter(StreamSampler(lambda: stream, "audio", WINDOW, crop_seconds, Batching(1, 4, None), seed=0))


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_next_window_is_read_while_one_is_used():
    stream = Stream()
    requests = requests_of(stream)
    for number in range(9):
        next(requests)
        rows = (number // 3 + 2) * WINDOW
        assert wait_for(lambda rows=rows: stream.read == rows)
        time.sleep(0.05)
        assert stream.read == rows  # and not the window after it


def test_a_window_of_long_clips_is_no_longer():
    stream = Stream(seconds=5.0)
    requests = requests_of(stream)
    assert len({next(requests).position for _ in range(3)}) == 3
    assert wait_for(lambda: stream.read == 2 * 3)  # of 5 crops: 15 in each window


def test_a_loader_that_is_left_stops_reading():
    before = threading.active_count()
    requests = requests_of(stream := Stream())
    next(requests)
    del requests
    assert wait_for(lambda: threading.active_count() == before)
    read = stream.read
    time.sleep(0.05)
    assert stream.read == read


def test_an_error_in_the_thread_comes_when_its_window_is_needed():
    requests = requests_of(Stream(error_at=WINDOW + 3))
    assert [next(requests).position for _ in range(3)] == [4, 8, 12]
    with pytest.raises(OSError, match="connection lost"):
        next(requests)


def test_an_empty_stream_is_refused():
    with pytest.raises(UserError, match="no readable clip"):
        next(requests_of(Stream(rows=0)))
