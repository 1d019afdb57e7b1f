"""Shard storage: patterns of paths and URLs, file systems, and reads with retries.

fsspec opens `s3://`, `gs://`, `hf://` and others; each needs its own package.
"""

import contextlib
import glob
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec

from src.atomic import writing
from src.errors import UserError

RETRY_DELAYS_SECONDS = (0.5, 2.0, 8.0)  # before each retry of a remote read
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_Result = TypeVar("_Result")


def expand_shards(pattern: str) -> list[str]:
    """Paths or URLs of `a/{000..012}.tar`, `a/*.tar` or one tar: ranges in order, `*` sorted.

    Shards of a range may be missing; opening them reports it.

    Raises:
        UserError: no shard exists; an unknown protocol, or one whose package is not installed.
    """
    if Path(pattern).expanduser().is_file():  # whatever characters are in its name
        return [str(Path(pattern).expanduser())]
    parts = expand_ranges(pattern)
    if "://" in pattern:  # missing ones fail when they are opened
        shards = existing = [shard for part in parts for shard in _matching_urls(part)]
    else:
        paths = [str(Path(part).expanduser()) for part in parts]
        matches = [_matching_paths(Path(path)) for path in paths]
        existing = [shard for each in matches for shard in each]
        shards = [shard for path, each in zip(paths, matches, strict=True) for shard in each or [path]]
    if not existing:
        where = "" if "://" in pattern else f" (looked in {Path.cwd()})"
        raise UserError(f"there is no shard {pattern}{where}; write a tar, a/*.tar or a/{{000..012}}.tar")
    return shards


def expand_ranges(pattern: str) -> list[str]:
    """Expand `a{1..2}/{00..10}.tar`, zero-padded like the first number; a pattern without ranges is returned as is."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    rest = expand_ranges(pattern[match.end() :])
    return [pattern[: match.start()] + number + end for number in numbers for end in rest]


def _matching_paths(path: Path) -> list[str]:
    if path.is_file():
        return [str(path)]
    folder = glob.escape(str(path.parent)) if path.parent.is_dir() else str(path.parent)
    return sorted(glob.glob(f"{folder}/{path.name}"))  # noqa: PTH207, Path.glob takes no absolute patterns


def _matching_urls(url: str) -> list[str]:
    if not glob.has_magic(url):
        return [url]
    filesystem, path = open_filesystem(url)
    try:
        matches = retry(lambda: filesystem.glob(path), True)
    except OSError as error:
        raise UserError(f"the shards {url} cannot be listed ({error})") from None
    return sorted(str(filesystem.unstrip_protocol(each)) for each in matches)


def open_filesystem(shard: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in its notation.

    Raises:
        UserError: an unknown protocol, or one whose package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(shard)
    except ImportError as error:
        packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
        package = packages.get(shard.partition("://")[0])
        advice = f"pip install {package}" if package else "install the package it needs"
        raise UserError(f"the shard {shard} cannot be opened ({error}); {advice}") from None
    except ValueError as error:
        raise UserError(f"the shard {shard} cannot be opened: {error}") from None


def retry(read: Callable[[], _Result], remote: bool) -> _Result:
    """The result of `read`. Remote reads are retried after pauses, unless the file does not exist.

    Raises:
        OSError: the last attempt failed.
    """
    for pause in (*RETRY_DELAYS_SECONDS, None) if remote else (None,):
        try:
            return read()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # storage drivers raise errors from many libraries
            if not remote:
                raise
            if pause is None:
                raise OSError(f"{type(error).__name__}: {error}") from error
            time.sleep(pause)
    raise AssertionError("not reached")


def read_range(shard: str, start: int, size: int, patient: bool = True) -> bytes:
    """`size` bytes of a shard from `start`, fewer at its end.

    Args:
        patient: retry if the storage is remote.

    Raises:
        OSError: no such shard, no access, no answer.
    """
    if "://" not in shard:  # a tenth of what fsspec takes, which counts for short clips
        with open(shard, "rb") as file:
            file.seek(start)
            return file.read(size)
    filesystem, path = open_filesystem(shard)  # each time: a worker must not reuse its parent's connections
    return retry(lambda: filesystem.cat_file(path, start, start + size), patient)


def read_file(file: str) -> bytes:
    """All bytes of a file. Errors as `read_range`."""
    filesystem, path = open_filesystem(file)
    return retry(lambda: filesystem.cat_file(path), "://" in file)


def local_path(location: str) -> Path | None:
    """The path of a file or folder on this machine, also of `file://`; None for other URLs."""
    if location.startswith("file://"):
        return Path(location.removeprefix("file://"))
    return None if "://" in location else Path(location).expanduser()


@contextlib.contextmanager
def publishing(target: str) -> Iterator[Path]:
    """As `src.atomic.writing`; what becomes a URL is written to a temporary file here and uploaded when it is complete.

    Raises:
        OSError: no permission, disk full, no answer.
    """
    local = local_path(target)
    if local is not None:
        with writing(local) as partial:
            yield partial
        return
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder, "partial")
        yield partial
        filesystem, path = open_filesystem(target)
        retry(lambda: filesystem.put_file(str(partial), path), True)


def list_names(folder: str) -> list[str]:
    """Names of the files in a folder; none if there is no such folder."""
    filesystem, path = open_filesystem(folder)
    filesystem.invalidate_cache()  # other processes write into it
    try:
        found = retry(lambda: filesystem.ls(path, detail=False), "://" in folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(posixpath.basename(each.rstrip("/")) for each in found)


def shard_stamp(shard: str) -> str:
    """Path, size and modification time of a shard and its index, as far as the storage reports them.

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
    return f"{info['name']} {file_stamp(info)}"


def file_stamp(info: dict) -> str:
    """Size and modification time of a file, or its ETag, from what its file system says about it."""
    return f"{info.get('size')} {info.get('mtime') or info.get('ETag') or info.get('LastModified')}"
