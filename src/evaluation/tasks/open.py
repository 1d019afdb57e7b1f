"""Open a task from its path: the layout is recognized."""

from pathlib import Path

from src.errors import UserError
from src.evaluation.tasks.labels import read_labels
from src.evaluation.tasks.task import Task, check


def open_task(text: str) -> Task:
    """The task at a path, checked.

    Raises:
        UserError: no such folder, no known layout, a wrong file in it; as `check`.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        raise UserError(f"there is no task {text} (looked in {Path.cwd()})")
    return check(read_labels(path))
