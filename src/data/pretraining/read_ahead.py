"""Which crops of a window are decoded together, and when: those of one clip, once, in the order of the file.

The crops of a long clip are spread over the batches of a window. Who makes the batches decodes the clip for the first
of them, and keeps the other crops until their batches come. As nearly all clips have a crop in the first batches of a
window, training would wait there; so these clips are decoded while the batches of the window before are made.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from src.data.pretraining.order import Crops


class Group(NamedTuple):
    """Crops of a clip in a window. ranges: (start_seconds, seconds) to decode, ascending. wanted: those to keep."""

    window: int
    source: int
    clip: int
    ranges: list[tuple[float, float]]
    wanted: set[tuple[float, float]]


def read_ahead(window: int, batches: Sequence[Crops], done: int, most_seconds: float) -> list[list[Group]]:
    """What to decode with each batch, for it and for later ones; nothing for the first `done`, which are not made.

    What is decoded together does not depend on `done`: MP3 and Opus differ by 1e-7 with the place where reading starts,
    and a resumed run has the same samples.

    Args:
        batches: all of a window that one process makes, in its order. most_seconds: of audio to keep at a time.
    """
    crops = Crops(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in Crops.__annotations__))
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    found: list[list[Group]] = [[] for _ in batches]
    for rows in _together(crops, most_seconds):
        left = [row for row in rows if batch_of[row] >= done]
        if left:
            ranges = [(float(crops.start_seconds[row]), float(crops.seconds[row])) for row in rows]
            wanted = {span for span, row in zip(ranges, rows, strict=True) if batch_of[row] >= done}
            group = Group(window, int(crops.source[rows[0]]), int(crops.clip[rows[0]]), sorted(ranges), wanted)
            found[min(batch_of[left])].append(group)
    return found


def bring_forward(
    groups: Sequence[list[Group]], slots: int, most_seconds: float
) -> tuple[list[list[Group]], list[list[Group]]]:
    """Divide the groups of a window, which are given for each of its batches, into those to decode with the batches of
    the window before, evenly over `slots` of them, and those that stay where they are.

    Args:
        most_seconds: of audio to keep for the next window.
    """
    ends = np.cumsum([_seconds(group) for batch in groups for group in batch])
    count = int(np.searchsorted(ends, most_seconds, side="right")) if slots else 0
    early: list[list[Group]] = [[] for _ in range(slots)]
    late: list[list[Group]] = [[] for _ in groups]
    for number, (batch, group) in enumerate((batch, group) for batch, mine in enumerate(groups) for group in mine):
        if number < count:
            early[int((ends[number] - _seconds(group)) / ends[count - 1] * slots)].append(group)
        else:
            late[batch].append(group)
    return early, late


def _seconds(group: Group) -> float:
    return sum(seconds for _, seconds in group.wanted)


def _together(crops: Crops, most_seconds: float) -> list[list[int]]:
    """Rows that are decoded when the first of them comes."""
    clips = list(zip(crops.source.tolist(), crops.clip.tolist(), strict=True))
    waiting: dict[tuple[int, int], list[int]] = defaultdict(list)  # rows of each clip, the last one first
    for row in reversed(range(len(crops))):
        waiting[clips[row]].append(row)
    kept: set[int] = set()
    kept_seconds, found = 0.0, []
    for row, clip in enumerate(clips):
        if row in kept:
            kept_seconds -= crops.seconds[row]
            continue
        rows = [waiting[clip].pop()]
        while waiting[clip] and kept_seconds + crops.seconds[waiting[clip][-1]] <= most_seconds:
            rows.append(waiting[clip].pop())
            kept_seconds += crops.seconds[rows[-1]]
        kept.update(rows[1:])
        if len(rows) > 1:
            found.append(rows)
    return found
