"""The order of crops as a pure function of (seed, position): nothing to store or fast-forward on resume.

Position counts the crops consumed by all processes since the start of training. The endless sequence of crops is split
into windows. In each window, crops are shuffled, sorted by length, split into batches, and the batches shuffled.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 64  # adjacent crops that stay together until the window is shuffled, so that shards are read nearly in sequence
_SLOTS = 1000  # number of crops over which the shares of a mixture are exact
_CHUNK = 256  # clips per stored crop count, to save memory


@dataclass(frozen=True)
class Crops:
    """The crops of a window or batch, as arrays of equal length. seed: 62 bits per crop, independent of the rank."""

    source: np.ndarray
    clip: np.ndarray
    start_seconds: np.ndarray
    seconds: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.clip)

    def take(self, rows: np.ndarray) -> "Crops":
        return Crops(self.source[rows], self.clip[rows], self.start_seconds[rows], self.seconds[rows], self.seed[rows])


@dataclass(frozen=True)
class Batching:
    """How crops become global batches: up to `clips` or `seconds` (of padded audio) per process."""

    world_size: int
    clips: int | None
    seconds: float | None

    def batch_ends(self, seconds: np.ndarray) -> np.ndarray:
        """Batch ends in a list of ascending lengths; multiples of world_size if the number of lengths is one."""
        if self.clips is not None:
            return np.append(np.arange(self.unit, len(seconds), self.unit), len(seconds))
        assert self.seconds is not None
        longest = seconds[self.world_size - 1 :: self.world_size]  # of each group of one crop per process
        ends, start = [], 0
        for row, length in enumerate(longest):
            if row > start and (row + 1 - start) * length > self.seconds:
                ends.append(row)
                start = row
        return np.array([*ends, len(longest)]) * self.world_size

    @property
    def unit(self) -> int:
        """The number of crops in a window is a multiple of this."""
        return self.world_size * (self.clips or 1)


class CropCounts:
    """The crops of a source, numbered in clip order. total: number of crops.

    Args:
        seconds: (n,) clip lengths; may be memory-mapped. crop_seconds: as in `Order`.
    """

    def __init__(self, seconds: np.ndarray, crop_seconds: float) -> None:
        self.seconds, self.crop_seconds = seconds, crop_seconds
        sums = []
        for start in range(0, len(seconds), 4096 * _CHUNK):
            counts = crops_of(seconds[start : start + 4096 * _CHUNK], crop_seconds)
            sums.append(np.add.reduceat(counts, np.arange(0, len(counts), _CHUNK)))
        self._ends = np.cumsum(np.concatenate(sums))  # of chunks
        self.total = int(self._ends[-1])

    def find(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For crop indices below `total`: the clip, its seconds, its number of crops, and the crop's index in it."""
        chunk = np.unique(np.searchsorted(self._ends, crop, side="right"))
        clips = chunk[:, None] * _CHUNK + np.arange(_CHUNK)
        valid = clips < len(self.seconds)
        seconds = self.seconds[np.minimum(clips, len(self.seconds) - 1)]
        counts = np.where(valid, crops_of(seconds, self.crop_seconds), 0)
        ends = self._ends[chunk][:, None] - counts.sum(1, keepdims=True) + np.cumsum(counts, axis=1)
        row = np.searchsorted(ends.ravel(), crop, side="right")
        count = counts.ravel()[row]
        return clips.ravel()[row], seconds.ravel()[row], count, crop - (ends.ravel()[row] - count)


class Order:
    """The endless sequence of crops of one or more sources.

    Args:
        seconds: (n,) clip lengths of each source. weights: of the sources, proportional to their shares of the crops.
        resample: draw runs of BLOCK adjacent crops with replacement; otherwise each crop comes once per epoch.
        crop_seconds: a longer clip gives floor(seconds / crop_seconds) crops, each from its own segment of the clip.
        window_clips: crops to shuffle together, at most an epoch, rounded up to whole batches.
    """

    def __init__(
        self, seconds: list[np.ndarray], weights: list[float], crop_seconds: float, window_clips: int, seed: int,
        resample: bool = False,
    ) -> None:  # fmt: skip
        self.crop_seconds, self.window_clips, self.seed, self.resample = crop_seconds, window_clips, seed, resample
        self._sources = [CropCounts(np.asarray(s), crop_seconds) for s in seconds]
        share = np.array(weights, dtype=np.float64) / sum(weights) * _SLOTS
        slots = np.floor(share).astype(int)
        slots[np.argsort(slots - share, kind="stable")[: _SLOTS - slots.sum()]] += 1
        self._pattern = np.argsort(np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in slots]), kind="stable")
        self._pattern = np.repeat(np.arange(len(slots)), slots)[self._pattern]
        self._slots = slots
        self._rank = np.zeros(_SLOTS, dtype=np.int64)  # number of earlier slots with the same source
        for source in range(len(slots)):
            self._rank[self._pattern == source] = np.arange(slots[source])

    @property
    def num_crops(self) -> int:
        """Per epoch, over all sources."""
        return sum(source.total for source in self._sources)

    def window_size(self, batching: Batching) -> int:
        size = min(self.window_clips, self.num_crops)
        return -(-size // batching.unit) * batching.unit

    def crops(self, positions: np.ndarray) -> Crops:
        """The crops at positions of the endless sequence, before the windows are shuffled."""
        block, slot = np.divmod(positions, _SLOTS)
        source = self._pattern[slot]
        draw = block * self._slots[source] + self._rank[slot]
        clip, start, seconds, seed = (np.zeros(len(positions), t) for t in (np.int64, float, float, np.int64))
        for s in np.unique(source):
            rows = np.flatnonzero(source == s)
            if self.resample:  # a seed per draw, so that repeats of a crop are cut differently
                epoch, index = draw[rows], self._with_replacement(draw[rows], s)
            else:
                epoch, index = np.divmod(draw[rows], self._sources[s].total)
                index = self._permute(index, epoch, s)
            clip[rows], length, count, number = self._sources[s].find(index)
            seed[rows] = crop_seeds(self.seed, int(s), epoch, clip[rows], number)
            start[rows], seconds[rows] = place_crops(length, count, number, self.crop_seconds, seed[rows])
        return Crops(source, clip, start, seconds, seed)

    def _permute(self, index: np.ndarray, epoch: np.ndarray, source: int) -> np.ndarray:
        """Shuffle the crops of an epoch: full blocks are permuted, the incomplete last block stays at the end."""
        blocks = self._sources[source].total // BLOCK
        block, inner = np.divmod(index, BLOCK)
        permuted = block.copy()
        for e in np.unique(epoch):
            rows = np.flatnonzero((epoch == e) & (block < blocks))
            permuted[rows] = permute(block[rows], blocks, hash_integers(self.seed, source, int(e)))
        return permuted * BLOCK + inner

    def _with_replacement(self, draw: np.ndarray, source: int) -> np.ndarray:
        """Runs of crops with a random start; every crop is equally likely."""
        run, inner = np.divmod(draw, BLOCK)
        total = self._sources[source].total
        begin = (uniform(run.astype(np.uint64) ^ np.uint64(hash_integers(self.seed, source)), 3) * total).astype(
            np.int64
        )
        return (begin + inner) % total


def make_batches(crops: Crops, batching: Batching, key: int) -> list[Crops]:
    """Split the crops of a window into global batches; a pure function of its arguments."""
    random = np.random.Generator(np.random.Philox(key=np.array([key & (2**64 - 1), 1], dtype=np.uint64)))
    shuffled = crops.take(random.permutation(len(crops)))
    ascending = shuffled.take(np.argsort(np.round(shuffled.seconds, 2), kind="stable"))
    ends = batching.batch_ends(ascending.seconds)
    batches = np.split(np.arange(len(crops)), ends[:-1]) if len(crops) else []
    return [ascending.take(batches[i]) for i in random.permutation(len(batches))]


def eval_batches(crops: Crops, most_clips: int | None, most_seconds: float, rank: int, world_size: int) -> list[Crops]:
    """The batches of a rank, from crops of ascending length. Ranks have equally many batches, whose sizes differ by at
    most one crop.

    No crop is left out, and none is repeated unless there are fewer crops than ranks.

    Args:
        most_clips, most_seconds: maximum size of a batch in one process (seconds of padded audio).
    """
    rows = np.resize(np.arange(len(crops)), max(len(crops), world_size))
    ends, start = [], 0
    for row, length in enumerate(crops.seconds):
        count = row - start
        full = most_clips is not None and count >= most_clips * world_size
        if count >= world_size and (full or (count + 1) * length > most_seconds * world_size):
            ends.append(row)
            start = row
    if ends and len(rows) - start < world_size:
        ends.pop()
    return [crops.take(part[rank::world_size]) for part in np.split(rows, ends)]


def crops_of(seconds: np.ndarray, crop_seconds: float) -> np.ndarray:
    """Number of crops per epoch of clips of these lengths."""
    return np.maximum(1, np.floor(seconds / crop_seconds + 1e-6)).astype(np.int64)


def place_crops(
    length: np.ndarray, count: np.ndarray, number: np.ndarray, crop_seconds: float, seed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Start and seconds of crop `number` of `count`: random within its segment of the clip; short clips whole."""
    segment = length / count
    slack = np.maximum(segment - crop_seconds, 0.0)
    return number * segment + uniform(seed, 1) * slack, np.minimum(length, crop_seconds)


def crop_seeds(seed: int, source: int, epoch: np.ndarray, clip: np.ndarray, number: np.ndarray) -> np.ndarray:
    """A seed of 62 bits for each crop."""
    value = splitmix64(clip.astype(np.uint64) ^ np.uint64(hash_integers(seed, source)))
    value = splitmix64(
        value + splitmix64(np.asarray(epoch, dtype=np.uint64) * np.uint64(2**32) + number.astype(np.uint64))
    )
    return (value >> np.uint64(2)).astype(np.int64)


def uniform(seed: np.ndarray, purpose: int) -> np.ndarray:
    """Numbers in [0, 1), one per seed; different values of `purpose` give independent numbers."""
    return (splitmix64(seed.astype(np.uint64) + np.uint64(hash_integers(purpose))) >> np.uint64(11)).astype(
        float
    ) / 2**53


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """A permutation of range(size) at `index`, without storing it: a four-round Feistel network with cycle walking."""
    bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64(2**bits - 1)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> np.uint64(bits), result[todo] & mask
        for round_ in range(4):
            left, right = right, left ^ (splitmix64(right + np.uint64(hash_integers(key, round_))) & mask)
        result[todo] = left << np.uint64(bits) | right
        todo = todo[result[todo] >= size]
    return result.astype(np.int64)


def hash_integers(*numbers: int) -> int:
    """A 64-bit hash of integers."""
    value = np.uint64(0)
    for number in numbers:
        value = splitmix64(np.array([(int(value) ^ int(number)) & (2**64 - 1)], dtype=np.uint64))[0]
    return int(value)


def splitmix64(value: np.ndarray) -> np.ndarray:
    """The splitmix64 hash, elementwise."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
