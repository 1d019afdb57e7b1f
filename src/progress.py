"""A progress bar on stderr."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(what: str, total: int, shown: bool = True, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield a function to call as items are finished: `advance(count=1, text=what)`.

    Args:
        what: description next to the bar. total: number of items. shown: False disables the bar. done: items finished
            before.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        task = progress.add_task(what, total=total, completed=done)

        def advance(count: int = 1, text: str = what) -> None:
            progress.update(task, advance=count, description=text)

        yield advance
