"""Write files and folders atomically: under a temporary name in the same folder, then renamed. Lock a folder."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file next to `target`; it replaces `target` on success and is removed on error.

    Concurrent writers get different paths. Permissions follow the user's umask.

    Raises:
        OSError: no permission, disk full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp restricts access to the owner
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder in `parent`; what `publish_folder` has not renamed is removed at the end.

    Raises:
        OSError: no permission.
    """
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(partial: Path, target: Path) -> None:
    """Rename a finished folder to `target`, which never changes afterwards: if there is one already, it stays."""
    partial.chmod(0o777 & ~_umask())
    try:
        os.replace(partial, target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def writing_folder(target: Path) -> Iterator[Path]:
    """As `writing`, for a folder of plain files. `target` must not exist or be an empty folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        mask = _umask()
        for path in (partial, *partial.rglob("*")):  # safetensors restricts access, too
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def writing_new(target: Path) -> Iterator[tuple[Path, Path]]:
    """As `writing`, but nothing is replaced: if `target` exists, it is `name-2.csv`, `name-3.csv`, ... instead.

    Yields the path of the temporary file, and the path that it gets.
    """
    number, free = 1, target
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            free.open("x").close()
            break
        except FileExistsError:
            number += 1
            free = target.with_stem(f"{target.stem}-{number}")
    try:
        with writing(free) as partial:
            yield partial, free
    except BaseException:
        free.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in here for the same `target`; one that dies is out of it.

    Where nothing can be locked (no permission, some network file systems) nobody waits.
    """
    lock = target.parent / f".{target.name}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_locked(lock))
            while not _is_at(file, lock):  # the one before removed it while we waited
                file = stack.enter_context(_locked(lock))
            stack.callback(lock.unlink, missing_ok=True)
        yield


def _locked(path: Path) -> IO[str]:
    file = open(path, "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class FolderLock:
    """Holds a folder, which is created if needed, against other processes until `close`, or until the process ends.

    Forked children, such as data workers, do not hold it: they may outlive a killed process.

    Raises:
        BlockingIOError: another process holds it. OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".lock"
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place():
                    _held.add(self)
                    return
            except OSError:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # another process was done and removed the file meanwhile

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._file.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._descriptor >= 0:
            self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _let_go() -> None:
    """Close the locks of the parent, which keeps them."""
    for lock in _held:
        if lock._descriptor >= 0:
            os.close(lock._descriptor)
            lock._descriptor = -1


os.register_at_fork(after_in_child=_let_go)


def _umask() -> int:
    """Read the umask, which is only possible by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
