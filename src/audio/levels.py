"""Sound that decodes but is hardly meant so: silence, channels that cancel, a constant, clipping, unscaled integers."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from src.audio.arrays import MOST_FLOAT
from src.audio.decode import AudioError, Encoded, channel_peak

_LOOKED_AT = 4096  # samples of a clip, or of each of its blocks, drawn at random: a grid may fit the period of a tone
_FEWEST = 160  # samples; of fewer, nothing more can be said
_MOST = 0.5  # share of the clip
_CANCELLED = 1e-3  # peak of the mean of the channels, relative to their own
_NAMED = 3  # examples in a sentence


class Levels:
    """The peak of a clip and a sample of its values, collected block by block."""

    def __init__(self) -> None:
        self._peak, self._parts = 0.0, list[np.ndarray]()
        self._random = np.random.default_rng(0)

    def add(self, block: np.ndarray) -> None:
        """block: (T,), at least one sample."""
        self._peak = max(self._peak, float(np.abs(block).max()))
        some = len(block) > _LOOKED_AT
        self._parts.append(block[self._random.integers(0, len(block), _LOOKED_AT)] if some else block.copy())

    def watch(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same blocks, each added as it passes."""
        for block in blocks:
            self.add(block)
            yield block

    def oddity(self, read: Callable[[], Encoded] | None = None) -> str:
        """What is odd about the clip; "" if nothing is.

        Args:
            read: returns what it was decoded from; of a very quiet clip, the channels are looked at.
        """
        if self._peak < _CANCELLED and read is not None and self._peak < _CANCELLED * _channel_peak(read):
            return "channels that cancel each other"
        if self._peak == 0:
            return "digital silence"
        if self._peak > MOST_FLOAT:
            return "values far beyond [-1, 1], as of integers that were never scaled"
        return _shape(np.concatenate(self._parts), self._peak)


def oddity(waveform: np.ndarray, read: Callable[[], Encoded] | None = None) -> str:
    """`Levels.oddity` of the samples (T,) of a whole clip."""
    levels = Levels()
    levels.add(waveform)
    return levels.oddity(read)


def _shape(looked_at: np.ndarray, peak: float) -> str:
    if len(looked_at) < _FEWEST:
        return ""
    constant = float(np.median(looked_at))
    if abs(constant) > 0.01 * peak and (np.abs(looked_at - constant) < 1e-3 * peak).mean() > _MOST:
        return "a constant for most of the clip"
    level = float(np.quantile(np.abs(looked_at), 0.9))
    if level > 0.5 * peak and (np.abs(np.abs(looked_at) - level) < 0.01 * level).mean() > _MOST:
        return "clipping for most of the clip"
    return ""


def warn_of_oddities(odd: Sequence[tuple[str, str]], among: str = "") -> None:
    """Warn with the sentences of `describe_oddities`. among: which clips were looked at, if not all."""
    for sentence in describe_oddities(odd):
        warnings.warn(f"{among}: {sentence}" if among else sentence, stacklevel=2)


def describe_oddities(odd: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence for each kind of oddity, with its count and the first names. odd: (name, oddity) of clips."""
    kinds: dict[str, list[str]] = {}
    for name, what in odd:
        kinds.setdefault(what, []).append(name)
    return [
        f"{len(names)} clip{'s' if len(names) > 1 else ''} with {what}, used as is: {', '.join(names[:_NAMED])}"
        + (", ..." if len(names) > _NAMED else "")
        for what, names in kinds.items()
    ]


def _channel_peak(read: Callable[[], Encoded]) -> float:
    try:
        return channel_peak(read())
    except AudioError:  # decoded a moment ago; gone or out of reach now
        return 0.0
