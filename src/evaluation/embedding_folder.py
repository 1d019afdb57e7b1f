"""A folder of embeddings, one table in parts `part-00003-of-00120.parquet`, that any number of processes write.

The clips are divided into parts by the inputs alone; each part is written atomically by one process, and finished parts
are left alone. Columns and settings are those of an `EmbeddingFile`. The metadata of each part also has, under `part`,
the inputs and the clips that could not be read. The folder is local, or anything fsspec opens.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.data.sources.source import Source
from src.data.sources.storage import list_names, open_filesystem, publishing
from src.errors import UserError
from src.evaluation.collection import Embedding, EmbedItem, clips_of
from src.evaluation.embedding_file import METADATA_KEY, EmbeddingFile, rows
from src.share import Share

_NAME = re.compile(r"part-(\d{5,})-of-(\d{5,})\.parquet")
_PART_KEY = b"part"
_CLIPS, _BYTES = 256, 32e6  # of a part at most; a larger clip is a part by itself


class Part(NamedTuple):
    """The listed clips `begin` to `end` of a source."""

    source: int
    begin: int
    end: int


def divide(sources: Sequence[Source]) -> list[Part]:
    """Each source in consecutive parts, without reading a header."""
    return [
        Part(number, begin, end)
        for number, source in enumerate(sources)
        for begin, end in _ranges(source.num_listed, source.sizes)
    ]


def _ranges(count: int, sizes: np.ndarray | None) -> Iterator[tuple[int, int]]:
    begin, num_bytes = 0, 0
    for i in range(count):
        size = 0 if sizes is None else int(sizes[i])
        if i > begin and (i - begin == _CLIPS or num_bytes + size > _BYTES):
            yield begin, i
            begin, num_bytes = i, 0
        num_bytes += size
    yield begin, count  # a source without clips has a part too, for what could not be read


class EmbeddingFolder:
    """Parts of one table.

    Args:
        folder: path or URL. sources: what is embedded. settings, inputs: as for `EmbeddingFile`.

    Raises:
        UserError: the folder has parts with other settings or inputs, or other parquet files.
    """

    def __init__(
        self, folder: str, sources: Sequence[Source], settings: dict[str, Any], inputs: dict[str, Any]
    ) -> None:
        self.folder, self.parts = folder.rstrip("/"), divide(sources)
        listed = [str(each.num_listed) if each.sizes is None else each.fingerprint for each in sources]
        self._about = json.loads(json.dumps({**inputs, "listed": listed}))
        self._settings = json.loads(json.dumps(settings))
        self._sources, self._repeated = sources, _repeated(sources)
        self.segmented = any(source.has_segments for source in sources)
        for source in sources:
            source.class_names  # noqa: B018, labels are read once, not for each part
        self._check()

    def _check(self) -> None:
        found = [name for name in list_names(self.folder) if name.endswith(".parquet") and not name.startswith(".")]
        if other := [name for name in found if not _NAME.fullmatch(name)]:
            raise UserError(f"{self.folder} holds other files ({other[0]}); choose another --out")
        if not found:
            return
        settings, about, _ = _read_metadata(f"{self.folder}/{found[0]}")
        before, now = {**settings, **about["inputs"]}, {**self._settings, **self._about}
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key) and key != "encoder"]
        total = _NAME.fullmatch(found[0])
        if changed or (total and int(total[2]) != len(self.parts)):
            words = [f"{key}: {before.get(key)} before, {now.get(key)} now" for key in changed if key != "listed"]
            listed = ", ".join(words) or "files were added, removed or changed"
            raise UserError(f"{self.folder} was started with other settings ({listed}); remove it or change --out")

    def _file(self, number: int) -> str:
        return f"{self.folder}/part-{number:05}-of-{len(self.parts):05}.parquet"

    def count(self, share: Share) -> int:
        """Number of listed clips in the unfinished parts of a share."""
        parts = [self.parts[number] for number in self._mine(share)]
        return sum(part.end - part.begin for part in parts)

    def _mine(self, share: Share) -> list[int]:
        missing = set(self.missing())
        return [number for number in share.of(range(len(self.parts))) if number in missing]

    def missing(self) -> list[int]:
        """Numbers of the parts that are not finished."""
        found = set(list_names(self.folder))
        return [i for i in range(len(self.parts)) if self._file(i).rpartition("/")[2] not in found]

    def write(self, embedding: Embedding, empty: pa.Table, share: Share) -> None:
        """Write the parts of a share that are not finished.

        Args:
            empty: a table of no rows, for a part of which no clip can be read.

        Raises:
            UserError: disk full, no permission, storage that does not answer.
        """
        mine = self._mine(share)
        bad: dict[int, list[tuple[str, str]]] = {}

        def with_clips() -> Iterator[tuple[int, list[EmbedItem]]]:
            for number in mine:
                clips, bad[number] = self._open(self.parts[number])
                if clips:
                    yield number, clips
                else:
                    self._publish(number, bad[number], None, empty)

        for number, decoded in embedding.decoded(with_clips()):
            with tempfile.TemporaryDirectory() as scratch:
                with contextlib.closing(EmbeddingFile(Path(scratch, "rows.parquet"), self._settings)) as file:
                    bad[number] += embedding.write(file, decoded)
                    file.metadata = self._metadata_of(bad[number])
                    if file.done:
                        file.finish()
                self._publish(number, bad[number], file.target if file.done else None, empty)

    def _open(self, part: Part) -> tuple[list[EmbedItem], list[tuple[str, str]]]:
        """Clips of a part, and (path, reason) of those that are not readable."""
        whole = self._sources[part.source]
        source, repeated = whole.part(part.begin, part.end), self._repeated[part.source]
        bad = [(path, reason) for path, reason in source.bad_paths if path not in repeated]
        return list(clips_of([source], repeated, self.segmented)), bad

    def _publish(self, number: int, bad: list[tuple[str, str]], file: Path | None, empty: pa.Table) -> None:
        try:
            with publishing(self._file(number)) as partial:
                if file is None:
                    pq.write_table(empty.replace_schema_metadata(self._metadata_of(bad)), partial)
                else:
                    shutil.copyfile(file, partial)
        except OSError as error:
            raise UserError(
                f"{self._file(number)} cannot be written ({error.strerror or error}); finished parts are kept"
            ) from None

    def _metadata_of(self, bad: list[tuple[str, str]]) -> dict[bytes, str]:
        about = {"inputs": self._about, "skipped": bad}
        return {METADATA_KEY: json.dumps(self._settings), _PART_KEY: json.dumps(about)}

    def summary(self) -> tuple[int, list[tuple[str, str]]]:
        """Of the finished parts: the number of rows, and (path, reason) of what could not be read."""
        found = [name for name in list_names(self.folder) if _NAME.fullmatch(name)]
        with ThreadPoolExecutor(16) as pool:
            parts = list(pool.map(lambda name: _read_metadata(f"{self.folder}/{name}"), found))
        return sum(rows for _, _, rows in parts), [
            (path, why) for _, about, _ in parts for path, why in about["skipped"]
        ]


def part_files(folder: str) -> list[str]:
    """The parts of a folder, in order.

    Raises:
        UserError: there are none; some are missing.
    """
    found = [(name, match) for name in list_names(folder) if (match := _NAME.fullmatch(name))]
    if not found:
        raise UserError(f"there are no embeddings in {folder}; create them with python -m src.embed ... --out {folder}")
    total = int(found[0][1][2])
    if len(found) < total:
        raise UserError(f"{folder} has {len(found)} of {total} parts; run the same python -m src.embed again")
    return [f"{folder.rstrip('/')}/{name}" for name, _ in found]


def empty_table(width: int, at_frames: bool, segmented: bool) -> pa.Table:
    """No rows, with the columns of those that `embed` writes. width: values of an embedding."""
    times = np.zeros(0) if at_frames else None
    return rows([], [], [], np.zeros((0, width), np.float32), times, [] if segmented else None)


def _repeated(sources: Sequence[Source]) -> list[set[str]]:
    """For each source, the paths that a source before it has too."""
    if len(sources) == 1:
        return [set()]
    seen: set[str] = set()
    repeated = []
    for source in sources:
        paths = list(source.listed_paths())
        repeated.append(seen.intersection(paths))
        seen.update(paths)
    return repeated


def _read_metadata(file: str) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The settings, the inputs with what was skipped, and the number of rows.

    Raises:
        UserError: not a part.
    """
    filesystem, path = open_filesystem(file)
    try:
        with filesystem.open(path, "rb") as opened:
            metadata = pq.read_metadata(opened)
        return json.loads(metadata.metadata[METADATA_KEY]), json.loads(metadata.metadata[_PART_KEY]), metadata.num_rows
    except (OSError, ValueError, KeyError, TypeError) as error:  # pa.ArrowInvalid is a ValueError
        raise UserError(f"{file} is not a part of a table of embeddings ({error}); remove it") from None
