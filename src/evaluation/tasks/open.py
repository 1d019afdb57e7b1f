"""Open a task: the layout is recognized from what lies at the path."""

from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError
from src.evaluation.tasks import hear
from src.evaluation.tasks.hub import read_hub
from src.evaluation.tasks.known import KNOWN
from src.evaluation.tasks.labels import read_labels
from src.evaluation.tasks.task import Task, check
from src.evaluation.tasks.xares import read_xares
from src.hub_names import hint


def open_task(text: str) -> Task:
    """The task, checked.

    Args:
        text: a folder in one of the layouts; a Hugging Face dataset; the name of a known task that is on the hub.

    Raises:
        UserError: no such task, no known layout, a wrong file in it; as `check`.
    """
    path = Path(text.partition("?")[0]).expanduser()
    if path.is_dir():
        return check(_read_folder(path, text))
    known = KNOWN.get(text)
    if known and known.hub:
        return check(read_hub(known.hub, text))
    if known:
        raise UserError(f"{text} is not on the hub; get it from {known.source}, and give the path of its folder")
    if text.startswith("hf://"):
        return check(read_hub(text))
    raise UserError(
        f"there is no task {text} (looked in {Path.cwd()}); give a folder, hf://owner/name, or a known name"
        f"{hint(str(path))}"
    )


def find_tasks(texts: Sequence[str]) -> list[str]:
    """A folder that holds tasks stands for all of them; the rest as given.

    Raises:
        UserError: a folder that is neither a task nor holds any.
    """
    found: list[str] = []
    for text in texts:
        path = Path(text).expanduser()
        if not path.is_dir() or layout_of(path):
            found.append(text)
            continue
        folders = task_folders(path)
        if not folders:
            raise UserError(
                f"{text} holds no task: no task_metadata.json, labels.csv, tars or dataset in it or two levels below"
            )
        found += [str(folder) for folder in folders]
    return found


def task_folders(path: Path) -> list[Path]:
    """Folders below `path` (or itself) that look like tasks, down to two levels."""
    if layout_of(path):
        return [path]
    below = sorted(p for p in path.glob("*") if p.is_dir())
    deeper = [p for folder in below if not layout_of(folder) for p in sorted(folder.glob("*")) if p.is_dir()]
    return [folder for folder in [*below, *deeper] if layout_of(folder)]


def layout_of(folder: Path) -> str | None:
    """HEAR, labels.csv, Hugging Face or X-ARES; None if the folder is no task."""
    if (folder / hear.METADATA).exists() or (folder / hear.VOCABULARY).exists():
        return "HEAR"
    if (folder / "labels.csv").exists() or (folder / "labels.tsv").exists():
        return "labels.csv"
    if (folder / "dataset_dict.json").exists() or any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
        return "Hugging Face"
    return "X-ARES" if any(folder.glob("*.tar")) else None


def _read_folder(path: Path, text: str) -> Task:
    layout = layout_of(path)
    if layout == "HEAR":
        return hear.read_hear(path)
    if layout == "Hugging Face":
        return read_hub(text)
    if layout == "X-ARES":
        return read_xares(path)
    return read_labels(path)
