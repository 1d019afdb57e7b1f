"""Sound that decodes but is hardly meant so: silence, channels that cancel, a constant, clipping, unscaled integers."""

from collections.abc import Callable, Sequence

import numpy as np

from src.audio.arrays import MOST_FLOAT
from src.audio.decode import AudioError, Encoded, channel_peak

_LOOKED_AT = 4096  # samples of a clip, spread over it
_FEWEST = 160  # samples; of fewer, nothing more can be said
_MOST = 0.5  # share of the clip
_CANCELLED = 1e-3  # peak of the mean of the channels, relative to their own
_NAMED = 3  # examples in a sentence


def oddity(waveform: np.ndarray, read: Callable[[], Encoded] | None = None) -> str:
    """What is odd about the samples (T,) of a whole clip; "" if nothing is.

    Args:
        read: returns what they were decoded from; of a very quiet clip, the channels are looked at.
    """
    peak = float(np.abs(waveform).max())
    if peak < _CANCELLED and read is not None and peak < _CANCELLED * _channel_peak(read):
        return "channels that cancel each other"
    if peak == 0:
        return "digital silence"
    if peak > MOST_FLOAT:
        return "values far beyond [-1, 1], as of integers that were never scaled"
    if len(waveform) < _FEWEST:
        return ""
    looked_at = waveform[:: -(-len(waveform) // _LOOKED_AT)]
    constant = float(np.median(looked_at))
    if abs(constant) > 0.01 * peak and (np.abs(looked_at - constant) < 1e-3 * peak).mean() > _MOST:
        return "a constant for most of the clip"
    level = float(np.quantile(np.abs(looked_at), 0.9))
    if level > 0.5 * peak and (np.abs(np.abs(looked_at) - level) < 0.01 * level).mean() > _MOST:
        return "clipping for most of the clip"
    return ""


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
