"""What of the known tasks lies in a folder, and whether it is complete."""

from pathlib import Path

from src.errors import UserError
from src.evaluation.tasks.known import KNOWN
from src.evaluation.tasks.open import open_task, task_folders

HEADER = ["task", "title", "domain", "metric", "splits", "clips", "licence", "state"]


def list_tasks(folder: Path) -> list[list[str]]:
    """A line for each known task and each other task in the folder, under `HEADER`.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} (looked in {Path.cwd()})")
    found = dict(_line(path) for path in task_folders(folder))
    lines = []
    for name, known in KNOWN.items():
        if name in found:
            lines.append(found.pop(name))
            continue
        where = f"on the hub, as the task {name}" if known.hub else f"missing, see {known.source}"
        lines.append(
            [name, known.title, known.domain, known.metric, known.folds, str(known.clips), known.licence, where]
        )
    return [*lines, *found.values()]


def _line(path: Path) -> tuple[str, list[str]]:
    try:
        task = open_task(str(path))
    except UserError as error:
        return path.name, [path.name, "", "", "", "", "", "", f"broken: {error}"]
    known = KNOWN.get(task.name)
    splits = f"{len(task.folds)} folds" if task.folds else "split"
    state = f"complete, {path}"
    if known and known.layout == "HEAR" and len(task.clips) != known.clips:
        state = f"incomplete, {len(task.clips)} of {known.clips} clips, {path}"
    return task.name, [
        task.name,
        known.title if known else "",
        task.domain or "unknown",
        task.metrics[0],
        splits,
        str(len(task.clips)),
        known.licence if known else "",
        state,
    ]
