"""Is held-out audio also in train? Clips are equal if their undecoded bytes are."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from src.audio.decode import Encoded
from src.data.sources.source import Source

MAX_COMPARED = 20_000  # clips of a side: every one of them is opened


def count_overlap(held_out: Source, train: Sequence[Source]) -> int:
    """Clips of `held_out` that are also in `train`; 0 without a comparison if a side is larger than MAX_COMPARED."""
    if max([len(held_out), *map(len, train)]) > MAX_COMPARED:
        return 0
    sizes = {_num_bytes(held_out.read(i)) for i in range(len(held_out))}
    encoded = (source.read(i) for source in train for i in range(len(source)))
    digests = {content_digest(clip) for clip in encoded if _num_bytes(clip) in sizes}
    return sum(content_digest(held_out.read(i)) in digests for i in range(len(held_out))) if digests else 0


def _num_bytes(encoded: Encoded) -> int:
    return len(encoded) if isinstance(encoded, bytes) else Path(encoded).stat().st_size


def content_digest(encoded: Encoded) -> bytes:
    """16 bytes that identify the undecoded clip."""
    data = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
    return hashlib.md5(data, usedforsecurity=False).digest()
