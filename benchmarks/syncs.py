"""Where the host waits for the GPU: each synchronizing operation with the line that called it."""

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def listed(calls: Counter[str]) -> Iterator[None]:
    """Count the synchronizing operations inside, by "file:line", ours and that of the library called from there."""

    def note(message, category, filename, line, *_) -> None:
        if "synchronizing CUDA operation" in str(message):
            frames = [frame for frame in traceback.extract_stack()[:-1] if frame.filename != warnings.__file__]
            ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
            places = dict.fromkeys([place(filename, line), *(place(f.filename, f.lineno) for f in ours[-1:])])
            calls[" < ".join(places)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        with debug_mode("warn"):
            yield


@contextlib.contextmanager
def debug_mode(mode: str) -> Iterator[None]:
    """torch's reaction to synchronizing operations: "warn", or "error" for an exception."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place(filename: str, line: int | None) -> str:
    path = Path(filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])
    return f"{name}:{line}"


def describe(calls: Counter[str], steps: int) -> str:
    """Lines of what `listed` counted over so many steps."""
    total = f"{sum(calls.values()) / steps:g} a step"
    return "\n".join([total, *(f"    {count / steps:g} a step at {where}" for where, count in calls.most_common())])
