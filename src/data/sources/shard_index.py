"""The clips of many shards as memory-mapped columns: 100 million clips take no memory in a process.

Built once for a set of shards from `index.tar_members` of each, and kept in the cache, in a folder that never changes:
if some shards did not answer, the folder is one of its own, and they are asked again the next time.
"""

import atexit
import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.atomic import publish_folder, scratch_folder
from src.data.sources.index import Headers, cache_root, digest, read_member, scan_headers, tar_members
from src.data.sources.storage import shard_stamp
from src.errors import UserError
from src.progress import progress_bar

_COLUMNS = {"seconds": np.float64, "offset": np.int64, "size": np.int64, "name_end": np.int64, "names": np.uint8}
_AT_ONCE = 64  # shard indexes in memory at a time


class ShardIndex:
    """Readable clips of all shards, numbered from 0 in the order of the shards.

    Attributes:
        shards: the readable ones. missing: (shard, reason) of the others. bad: (shard, name, reason) of unreadable
            clips. fingerprint: identifies content and order.
    """

    def __init__(self, folder: Path, fingerprint: str, missing: list[tuple[str, str]]) -> None:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self._folder = folder
        self.shards: list[str] = about["shards"]
        self.missing = [*missing, *((shard, reason) for shard, reason in about["missing"])]
        self.fingerprint = digest([fingerprint, *(shard for shard, _ in about["missing"])])
        self.bad: list[tuple[str, str, str]] = [tuple(each) for each in about["bad"]]
        self._ends = np.array(about["ends"], dtype=np.int64)
        self._open_maps()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def seconds(self) -> np.ndarray:
        """(n,) length of each clip."""
        return self._maps["seconds"]

    @property
    def sizes(self) -> np.ndarray:
        """(n,) of each clip, in bytes."""
        return self._maps["size"]

    def shard(self, i: int) -> str:
        return self.shards[int(np.searchsorted(self._ends, i, side="right"))]

    def place(self, i: int) -> tuple[int, int]:
        """Offset and size in the shard, in bytes."""
        return int(self._maps["offset"][i]), int(self._maps["size"][i])

    def name(self, i: int) -> str:
        ends = self._maps["name_end"]
        return bytes(self._maps["names"][int(ends[i - 1]) if i else 0 : int(ends[i])]).decode()

    def _open_maps(self) -> None:
        self._maps = {name: _map(self._folder / name, kind) for name, kind in _COLUMNS.items()}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open_maps()  # each worker maps the files itself


def _map(file: Path, kind: type) -> np.ndarray:
    """As an array: each value of a `np.memmap` would be one too."""
    return np.memmap(file, dtype=kind, mode="r").view(np.ndarray) if file.stat().st_size else np.zeros(0, kind)


def open_shard_index(shards: list[str]) -> ShardIndex:
    """Index of the shards; missing or unreadable ones are left out and listed in `missing`.

    Raises:
        UserError: none of them can be read.
    """
    with ThreadPoolExecutor(16) as pool:  # remote shards answer slowly
        stamps = list(pool.map(_stamp_or_reason, shards))
    missing = [(shard, reason) for shard, (stamp, reason) in zip(shards, stamps, strict=True) if not stamp]
    available = [shard for shard, (stamp, _) in zip(shards, stamps, strict=True) if stamp]
    fingerprint = digest([stamp for stamp, _ in stamps if stamp])
    folder = cache_root() / "shard-indexes" / fingerprint
    if available and not folder.exists():
        try:
            folder = _write(available, folder)
        except OSError as error:
            warnings.warn(
                f"the index cache {folder} cannot be written ({error}); it is rebuilt each time", stacklevel=2
            )
            temporary = Path(tempfile.mkdtemp(prefix="audio-encoder-"))
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            folder = _write(available, temporary / fingerprint)
    index = ShardIndex(folder, fingerprint, missing) if available else None
    if index is not None and index.shards:
        return index
    shard, reason = (missing if index is None else index.missing)[0]
    others = f"; neither can the other {len(shards) - 1} shards" if len(shards) > 1 else ""
    raise UserError(f"the shard {shard} cannot be read ({reason}){others}")


def _stamp_or_reason(shard: str) -> tuple[str, str]:
    try:
        return shard_stamp(shard), ""
    except FileNotFoundError:
        return "", "there is no such shard"
    except OSError as error:
        return "", str(error)


class _Rows(NamedTuple):
    names: pa.Array
    offset: np.ndarray
    size: np.ndarray
    headers: Headers


def _write(shards: list[str], folder: Path) -> Path:
    """Write one file per column, and about.json, into `folder`, or beside it if a shard did not answer.

    Returns:
        The folder. If it exists by now, another process has written the same.

    Raises:
        OSError: disk full, no permission.
    """
    with scratch_folder(folder.parent) as partial:
        with contextlib.ExitStack() as opened:
            files = {name: opened.enter_context(open(partial / name, "wb")) for name in _COLUMNS}
            about, all_answered = _write_columns(shards, files)
        (partial / "about.json").write_text(json.dumps(about), encoding="utf-8")
        if not all_answered:
            folder = folder.with_name(f"{folder.name}-{digest([shard for shard, _ in about['missing']])}")
        publish_folder(partial, folder)
    return folder


def _write_columns(shards: list[str], files: Mapping[str, BinaryIO]) -> tuple[dict[str, Any], bool]:
    """The contents of about.json, and whether no shard failed to answer."""
    about: dict[str, Any] = {"shards": [], "ends": [], "missing": [], "bad": []}
    all_answered = True
    num_clips = num_bytes = 0
    for shard, rows in _read_rows(shards):
        if isinstance(rows, Exception):
            about["missing"].append((shard, str(rows)))
            all_answered &= not isinstance(rows, OSError)
            continue
        kept = np.array([not reason for reason in rows.headers.reason], dtype=bool)
        names = rows.names.cast(pa.large_string())
        for i in np.flatnonzero(~kept):
            about["bad"].append((shard, names[int(i)].as_py(), rows.headers.reason[i]))
        text = "".join(names.filter(pa.array(kept)).to_pylist()).encode()
        lengths = np.asarray(pc.binary_length(names))[kept].astype(np.int64)
        files["names"].write(text)
        files["name_end"].write((np.cumsum(lengths) + num_bytes).tobytes())
        for name, column in (("seconds", rows.headers.seconds), ("offset", rows.offset), ("size", rows.size)):
            files[name].write(column[kept].astype(_COLUMNS[name]).tobytes())
        num_clips, num_bytes = num_clips + int(kept.sum()), num_bytes + len(text)
        about["shards"].append(shard)
        about["ends"].append(num_clips)
    return about, all_answered


def _read_rows(shards: list[str]) -> Iterator[tuple[str, _Rows | Exception]]:
    """The clips of each shard, or the error if it cannot be read."""
    with (
        ThreadPoolExecutor(16) as pool,
        progress_bar("reading shard indexes", len(shards), len(shards) > 1000) as advance,
    ):
        for start in range(0, len(shards), _AT_ONCE):
            group = shards[start : start + _AT_ONCE]
            for shard, table in zip(group, pool.map(_table_or_error, group), strict=True):
                advance()
                yield shard, table if isinstance(table, Exception) else _rows_of(shard, table)


def _table_or_error(shard: str) -> pa.Table | Exception:
    try:
        return tar_members(shard)
    except (UserError, OSError) as error:
        return error


def _rows_of(shard: str, table: pa.Table) -> _Rows:
    offset, size = table.column("offset").to_numpy(), table.column("size").to_numpy()
    if "seconds" in table.column_names:
        seconds = table.column("seconds").to_numpy()
        reasons = np.where(np.isnan(seconds), "unreadable when the index was made", "").tolist()
        headers = Headers(seconds, reasons)
    else:
        stamp = shard_stamp(shard)
        names = table.column("name").to_pylist()
        keys = [f"{stamp} {name}" for name in names]
        headers = scan_headers(lambda i: read_member(shard, names[i], int(offset[i]), int(size[i])), keys, shard)
    return _Rows(table.column("name").combine_chunks(), offset, size, headers)
