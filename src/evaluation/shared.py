"""Share the tasks of an evaluation among the processes of torchrun; the last one to finish writes the tables."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.atomic import writing
from src.data.sources.index import digest


class World(NamedTuple):
    """rank, size: of this process among all. local_rank, local_size: on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def find_world() -> World:
    """As started by torchrun; otherwise one process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return World(*(int(os.environ[name]) for name in names)) if "TORCHELASTIC_RUN_ID" in os.environ else World()


def my_share(paths: Sequence[str], world: World) -> list[str]:
    return list(paths[world.rank :: world.size])


def gather(
    rows: list[dict[str, Any]],
    errors: dict[str, str],
    out: Path,
    world: World,
    paths: Sequence[str],
    command: Sequence[str],
) -> tuple[list[dict[str, Any]], dict[str, str]] | None:
    """Rows and errors of all processes if this is the last one to finish, else None.

    Args:
        paths: of all tasks, in the order of the table. command: what else tells this evaluation from others in `out`.
    """
    if world.size == 1:
        return rows, errors
    run = digest([os.environ["TORCHELASTIC_RUN_ID"], *paths, *command])[:12]
    files = [out / "parts" / f"{run}-{rank}-of-{world.size}.json" for rank in range(world.size)]
    with _locked(out):
        with writing(files[world.rank]) as file:
            file.write_text(json.dumps({"rows": rows, "errors": errors}), encoding="utf-8")
        if not all(file.exists() for file in files):
            return None
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        for file in files:
            file.unlink()
    joined = sorted((row for part in parts for row in part["rows"]), key=lambda row: paths.index(row["path"]))
    return joined, {what: error for part in parts for what, error in part["errors"].items()}


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
