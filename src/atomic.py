"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Give the path of a new file beside `target`; when the block ends well it replaces `target`, else it is removed.

    Two writers never share that path. The file has the permissions of the user's umask.

    Raises:
        OSError: no permission, no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp's are the owner's only
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def writing_folder(target: Path) -> Iterator[Path]:
    """The same of a folder. `target` must not exist, or be an empty folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    """There is no way to read it but to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
