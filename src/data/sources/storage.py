"""Where shards are: patterns of paths and URLs, file systems, reads with retries.

fsspec opens `s3://`, `gs://`, `hf://` and others, each by a package of its own.
"""

import glob
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import fsspec

from src.errors import UserError

RETRY_DELAYS_SECONDS = (0.5, 2.0, 8.0)  # before a remote read is tried again
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_Result = TypeVar("_Result")


def expand_shards(pattern: str) -> list[str]:
    """Paths or URLs of `a/{000..012}.tar`, `a/*.tar` or one tar, sorted as written.

    Shards of a range need not exist: opening them reports it.

    Raises:
        UserError: none is there; a protocol that is unknown or whose package is not installed.
    """
    parts = expand_ranges(pattern)
    if "://" in pattern:  # whether they are there is seen when they are opened
        shards = found = [shard for part in parts for shard in _matching_urls(part)]
    else:
        places = [str(Path(part).expanduser()) for part in parts]
        matches = [sorted(glob.glob(place)) for place in places]  # noqa: PTH207, Path.glob takes no absolute patterns
        found = [shard for each in matches for shard in each]
        shards = [shard for place, each in zip(places, matches, strict=True) for shard in each or [place]]
    if not found:
        where = "" if "://" in pattern else f" (looked in {Path.cwd()})"
        raise UserError(f"there is no shard {pattern}{where}; write a tar, a/*.tar or a/{{000..012}}.tar")
    return shards


def expand_ranges(pattern: str) -> list[str]:
    """`a{1..2}/{00..10}.tar` expanded, zero-padded as the first number; without a range unchanged."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    rest = expand_ranges(pattern[match.end() :])
    return [pattern[: match.start()] + number + end for number in numbers for end in rest]


def _matching_urls(url: str) -> list[str]:
    if not glob.has_magic(url):
        return [url]
    filesystem, path = open_filesystem(url)
    try:
        found = retry(lambda: filesystem.glob(path), True)
    except OSError as error:
        raise UserError(f"the shards {url} cannot be listed ({error})") from None
    return sorted(str(filesystem.unstrip_protocol(each)) for each in found)


def open_filesystem(shard: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in its form.

    Raises:
        UserError: a protocol that is unknown or whose package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(shard)
    except ImportError as error:
        packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
        package = packages.get(shard.partition("://")[0])
        advice = f"pip install {package}" if package else "install what it asks for"
        raise UserError(f"the shard {shard} cannot be opened ({error}); {advice}") from None
    except ValueError as error:
        raise UserError(f"the shard {shard} cannot be opened: {error}") from None


def retry(read: Callable[[], _Result], remote: bool) -> _Result:
    """Return `read()`; on remote storage retry it after delays, unless the file does not exist.

    Raises:
        OSError: all attempts failed.
    """
    for pause in (*RETRY_DELAYS_SECONDS, None) if remote else (None,):
        try:
            return read()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # drivers of storages raise errors of many libraries
            if not remote:
                raise
            if pause is None:
                raise OSError(f"{type(error).__name__}: {error}") from error
            time.sleep(pause)
    raise AssertionError("not reached")


def read_range(shard: str, start: int, size: int, patient: bool = True) -> bytes:
    """Bytes of a shard, fewer at its end.

    Args:
        patient: try again where the storage is remote.

    Raises:
        OSError: not there, no access, no answer.
    """
    filesystem, path = open_filesystem(shard)  # each time: a worker must not use the connections of its parent
    return retry(lambda: filesystem.cat_file(path, start, start + size), patient and "://" in shard)


def shard_stamp(shard: str) -> str:
    """Path, size and modification time of a shard and of the index beside it, as far as the storage knows them.

    Raises:
        OSError: no such shard, no access.
    """
    filesystem, path = open_filesystem(shard)
    stamp = _stamp(retry(lambda: filesystem.info(path), "://" in shard))
    try:
        return f"{stamp} {_stamp(retry(lambda: filesystem.info(f'{path}.index.parquet'), '://' in shard))}"
    except FileNotFoundError:
        return stamp


def _stamp(info: dict) -> str:
    changed = info.get("mtime") or info.get("ETag") or info.get("LastModified")
    return f"{info['name']} {info.get('size')} {changed}"
