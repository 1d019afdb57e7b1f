"""Odd sound in a set that is not decoded beforehand: some clips are looked at, as `src.audio.levels` does."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from src.audio.decode import AudioError, Encoded, decode_blocks
from src.audio.levels import Levels, warn_of_oddities
from src.data.sources.source import Source
from src.share import cores

MOST_CLIPS = 100  # of a source
_MOST_BLOCKS = 4  # of 30 s, of each clip

Read = Callable[[], Encoded]


def spread_clips(source: Source) -> Iterator[tuple[str, Read]]:
    """Path and encoded clip of up to MOST_CLIPS clips, spread over the source."""
    for i in np.linspace(0, len(source) - 1, min(MOST_CLIPS, len(source))).astype(int).tolist():
        yield source.path(i), partial(source.read, i)


def warn_of_some(clips: Iterable[tuple[str, Read]]) -> None:
    """Warn of odd sound in the first two minutes of the first MOST_CLIPS; unreadable ones are passed over."""
    some = list(itertools.islice(clips, MOST_CLIPS))
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(_oddity, (read for _, read in some))
        odd = [(path, what) for (path, _), what in zip(some, found, strict=True) if what]
    warn_of_oddities(odd, f"of {len(some)} clips looked at before training")


def _oddity(read: Read) -> str:
    levels = Levels()
    try:
        for block in itertools.islice(decode_blocks(read()), _MOST_BLOCKS):
            levels.add(block)
    except AudioError:  # training will meet it, and list it
        return ""
    return levels.oddity(read)
