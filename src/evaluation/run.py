"""Run an evaluation: embed the tasks, score every encoder with every method, collect the rows."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from src.errors import UserError
from src.evaluation.frozen import Frozen
from src.evaluation.methods import MAJORITY, METHODS
from src.evaluation.results import make_row
from src.evaluation.store import embed_task, folder_of
from src.evaluation.tasks.open import open_task
from src.evaluation.tasks.task import Task
from src.evaluation.units import Unit, score_unit
from src.progress import progress_bar
from src.share import cores

Errors = dict[str, str]  # by task


@dataclass(frozen=True)
class Settings:
    """out: where scores are kept. seed: None for each method's own. jobs: processes that score; they don't change the
    numbers. device: of methods that use a GPU. shown: whether to show progress. batch_seconds: of padded audio, for
    embeddings."""

    methods: Sequence[str]
    out: Path
    seed: int | None = None
    jobs: int = 1
    device: str = "cpu"
    shown: bool = True
    batch_seconds: float = 30.0


def evaluate(
    paths: Sequence[str], encoders: Sequence[Frozen], settings: Settings
) -> tuple[list[dict[str, Any]], Errors]:
    """Rows of `src.evaluation.results`, in the order of tasks, methods and encoders, and the errors of tasks.

    A user's error in one task does not stop the others. What is done is on disk: the same call continues.
    """
    tasks, errors = _open_tasks(paths)
    tasks = _embed(tasks, encoders, settings, errors)
    units = [unit for task in tasks for unit in _units(task, encoders, settings)]
    rows: dict[int, dict[str, Any]] = {}
    with progress_bar("scoring", len(units), settings.shown) as advance:
        for number, records in _scored(units, settings):
            unit = units[number]
            advance(1, f"scoring {unit.task.name}")
            if isinstance(records, UserError):
                _report(errors, f"{unit.task.name}, {unit.method}", records)
            else:
                rows[number] = make_row(unit, records)
    return [rows[number] for number in sorted(rows)], errors


def _open_tasks(paths: Sequence[str]) -> tuple[list[Task], Errors]:
    tasks: list[Task] = []
    errors: Errors = {}
    for path in paths:
        try:
            task = replace(open_task(path), path=path)
            if any(task.name == other.name for other in tasks):
                raise UserError(f"{path}: there are two tasks of the name {task.name}; rename one of them")
            tasks.append(task)
        except UserError as error:
            _report(errors, path, error)
    return tasks, errors


def _embed(tasks: Sequence[Task], encoders: Sequence[Frozen], settings: Settings, errors: Errors) -> list[Task]:
    """The tasks whose embeddings are complete."""
    done = []
    with progress_bar("embedding", sum(len(task.clips) for task in tasks), settings.shown) as advance:
        for task in tasks:
            text, left = f"embedding {task.name}", len(task.clips)

            def finished(count: int, text: str = text) -> None:
                nonlocal left
                left -= count
                advance(count, text)

            try:
                embed_task(task, encoders, cores(), settings.batch_seconds, finished)
                done.append(task)
            except UserError as error:
                _report(errors, task.name, error)
            advance(left, text)  # stored before, or given up
    return done


def _report(errors: Errors, what: str, error: UserError) -> None:
    if what not in errors:
        print(f"error: {error}", file=sys.stderr)
        errors[what] = str(error)


def _units(task: Task, encoders: Sequence[Frozen], settings: Settings) -> Iterator[Unit]:
    light = replace(task, clips=[])
    folders = {
        encoder.name: {view: folder_of(task, encoder, view) for view in encoder.views(task.timestamps)}
        for encoder in encoders
    }
    any_view = dict(list(folders[encoders[0].name].items())[:1])
    yield Unit(light, MAJORITY, True, MAJORITY, any_view, settings.seed, settings.out)
    for method in settings.methods:
        if METHODS[method].single and (task.timestamps or task.kind != "multiclass"):
            continue
        for encoder in encoders:
            yield Unit(light, encoder.name, encoder.floor, method, folders[encoder.name], settings.seed, settings.out)


def _scored(units: Sequence[Unit], settings: Settings) -> Iterator[tuple[int, list[dict[str, Any]] | UserError]]:
    """(index of the unit, its records or its error), in the order in which they are done."""
    jobs = min(settings.jobs, len(units))
    if jobs < 2:
        _use_device(settings.device)
        for number, unit in enumerate(units):
            yield number, _score(unit)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(jobs, context, _use_device, (settings.device,)) as pool:
        futures: dict[Future, int] = {pool.submit(_score, unit): number for number, unit in enumerate(units)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _use_device(device: str) -> None:
    """Make `device` the GPU that "cuda" means in this process."""
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))


def _score(unit: Unit) -> list[dict[str, Any]] | UserError:
    try:
        return score_unit(unit)
    except UserError as error:
        return UserError(f"{unit.task.name}, {unit.encoder}, {unit.method}: {error}")
