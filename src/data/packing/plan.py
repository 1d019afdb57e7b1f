"""Divide clips into shards: tars, or the parquet files of a Hugging Face dataset."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from src.data.packing.manifest import PackItem
from src.data.packing.prepare import KEEP, Preparation, Segment, segment_columns
from src.data.packing.shard_file import SEGMENT
from src.data.sources.annotations import split_name
from src.data.sources.index import digest
from src.errors import UserError

Format = Literal["tar", "parquet"]
_BLOCK = 512  # bytes of a tar block
_SPLIT_FILES = {"train": "train", "valid": "validation", "test": "test"}  # as `datasets` calls them


class Shard(NamedTuple):
    """path: or URL. stamp: identifies the files it is made from, and what is done to them. columns: names of what is
    kept of the clips besides their measures."""

    path: str
    clips: list[PackItem]
    stamp: str
    columns: list[str]


def plan_shards(
    clips: Sequence[PackItem],
    folder: str,
    shard_bytes: float,
    preparation: Preparation = KEEP,
    shard_format: Format = "tar",
) -> list[Shard]:
    """Consecutive clips, divided into shards of up to `shard_bytes` (a larger clip gets its own shard).

    Tars are `folder/000000.tar` and so on. Parquet files hold the clips of one split each and all have the same
    columns; they are `folder/train-00000-of-00012.parquet` and so on, by which `datasets` knows the splits and passes
    over other files. What is in which shard depends only on file names, splits and sizes.

    Raises:
        UserError: a column of the clips has a name that is taken; a split that is none.
    """
    taken = {} if preparation.segment_seconds is None else dict.fromkeys(SEGMENT, "segments get it")
    if shard_format == "parquet":
        taken["audio"] = "the dataset has for its audio"
    for clip in clips:
        if column := next((name for name in clip.columns if name.lower() in taken), None):
            raise UserError(f"the manifest has a column {column}, as {taken[column.lower()]}; rename that column")
    folder = folder.rstrip("/")
    if shard_format == "tar":
        made = [] if preparation.audio == "keep" else [str(preparation)]
        return [
            Shard(f"{folder}/{number:06}.tar", group, digest([*made, *keys]), _columns(group, preparation))
            for number, (group, keys) in enumerate(_groups(clips, shard_bytes))
        ]
    shards, columns = [], _columns(clips, preparation)
    for split, members in _by_split(clips).items():
        groups = list(_groups(members, shard_bytes))
        shards += [
            Shard(
                f"{folder}/{split}-{number:05}-of-{len(groups):05}.parquet",
                group,
                digest([str(preparation), *columns, *keys]),
                columns,
            )
            for number, (group, keys) in enumerate(groups)
        ]
    return shards


def _groups(clips: Sequence[PackItem], shard_bytes: float) -> Iterator[tuple[list[PackItem], list[str]]]:
    """The clips of each shard, and what identifies them."""
    group: list[PackItem] = []
    keys: list[str] = []
    room = 0.0
    for clip in clips:
        size, changed = clip.size_and_time()
        needed = (4 if clip.columns else 2) * _BLOCK + -(-size // _BLOCK) * _BLOCK
        if not group or needed > room:
            if group:
                yield group, keys
            group, keys, room = [], [], shard_bytes
        room -= needed
        group.append(clip)
        keys.append(f"{clip.name} {size} {changed} {sorted(clip.columns.items())}")
    if group:
        yield group, keys


def _columns(clips: Sequence[PackItem], preparation: Preparation) -> list[str]:
    """What rows made of these clips have besides the measures: all columns of the clips, then those of segments."""
    sets = list(dict.fromkeys(tuple(clip.columns) for clip in clips))
    if preparation.segment_seconds is not None:
        sets += [
            tuple(segment_columns(dict.fromkeys(names, ""), "", Segment(b"", 0.0, 0.0, 0.0, 0.0))) for names in sets
        ]
    return list(dict.fromkeys(name for names in sets for name in names))


def _by_split(clips: Sequence[PackItem]) -> dict[str, list[PackItem]]:
    """By the name that `datasets` has for the split; what is in none is for training."""
    found: dict[str, list[PackItem]] = {name: [] for name in _SPLIT_FILES.values()}
    for clip in clips:
        text = next((value for name, value in clip.columns.items() if name.lower() == "split"), "")
        try:
            split = split_name(text) or "train"
        except ValueError:
            raise UserError(
                f"{clip.name}: split {text} is not one of train, valid, test, which a dataset is divided by; rename "
                "that column or correct it"
            ) from None
        found[_SPLIT_FILES[split]].append(clip)
    return found
