"""Does held-out audio also appear in the training data? Clips are compared by their encoded bytes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from src.audio.decode import Encoded
from src.data.sources.source import Source

MAX_COMPARED = 20_000  # clips per source: each one is opened


def count_overlap(held_out: Source, train: Sequence[Source]) -> int:
    """Number of `held_out` clips also in `train`; 0, uncompared, if any source has more than MAX_COMPARED clips."""
    if max([len(held_out), *map(len, train)]) > MAX_COMPARED:
        return 0
    sizes = {_num_bytes(held_out.read(i)) for i in range(len(held_out))}
    encoded = (source.read(i) for source in train for i in range(len(source)))
    digests = {content_digest(clip) for clip in encoded if _num_bytes(clip) in sizes}
    return sum(content_digest(held_out.read(i)) in digests for i in range(len(held_out))) if digests else 0


def _num_bytes(encoded: Encoded) -> int:
    return len(encoded) if isinstance(encoded, bytes) else Path(encoded).stat().st_size


def content_digest(encoded: Encoded) -> bytes:
    """MD5 of the encoded clip, 16 bytes."""
    data = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
    return hashlib.md5(data, usedforsecurity=False).digest()
