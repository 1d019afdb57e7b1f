"""Progress on stderr: a bar on a terminal; a line now and then in a log file or a notebook."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.verbosity import NORMAL, level

_SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def progress_bar(what: str, total: int, shown: bool = True, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield a function to call as items are finished: `advance(count=1, text=what)`.

    Args:
        what: description next to the bar. total: number of items. shown: False disables it, as --quiet does. done:
            items finished before.
    """
    console = Console(stderr=True)
    if not shown or level() > NORMAL:
        yield lambda count=1, text=what: None
    elif not console.is_terminal:
        yield _lines(what, total, done)
    else:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total, completed=done)

            def advance(count: int = 1, text: str = what) -> None:
                progress.update(task, advance=count, description=text)

            yield advance


def _lines(what: str, total: int, done: int) -> Callable[..., None]:
    started = last = time.monotonic()
    finished = done

    def advance(count: int = 1, text: str = what) -> None:
        nonlocal finished, last
        finished += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and finished > done:
            last = now
            seconds = round((now - started) * (total - finished) / (finished - done))
            to_go = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} to go"
            print("  ".join(filter(None, [f"{finished} of {total}", text, to_go])), file=sys.stderr, flush=True)

    return advance
