"""Write files and folders atomically: under a temporary name in the same folder, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
    """As `writing`, for a folder. `target` must not exist or be an empty folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """Read the umask, which is only possible by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
