"""Run an evaluation: embed the tasks, score every encoder with every method, collect the rows."""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.evaluation.frozen import Frozen
from src.evaluation.methods import MAJORITY, METHODS
from src.evaluation.results import make_row
from src.evaluation.store import embed_task, folder_of
from src.evaluation.tasks.open import open_task
from src.evaluation.tasks.task import Task
from src.evaluation.units import Unit, score_unit
from src.progress import progress_bar

Errors = dict[str, str]  # by task


def evaluate(
    paths: Sequence[str], encoders: Sequence[Frozen], methods: Sequence[str], out: Path, seed: int | None, jobs: int
) -> tuple[list[dict[str, Any]], Errors]:
    """Rows of `src.evaluation.results`, in the order of tasks, methods and encoders, and the errors of tasks.

    A user's error in one task does not stop the others. What is done is on disk: the same call continues.

    Args:
        jobs: processes that score; they don't change the numbers.
    """
    tasks, errors = _open_tasks(paths)
    with progress_bar("", sum(len(task.clips) for task in tasks)) as advance:
        for task in tasks:
            before = len(errors)
            try:
                embed_task(task, encoders, _cores(), lambda count, name=task.name: advance(count, f"embedding {name}"))
            except UserError as error:
                _report(errors, task.name, error)
            if len(errors) > before:
                advance(0, task.name)
    units = [unit for task in tasks if task.name not in errors for unit in _units(task, encoders, methods, out, seed)]
    rows: dict[int, dict[str, Any]] = {}
    with progress_bar("", len(units)) as advance:
        for number, records in _scored(units, jobs):
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
            task = open_task(path)
            if any(task.name == other.name for other in tasks):
                raise UserError(f"there are two tasks of the name {task.name}; rename one of the folders")
            tasks.append(task)
        except UserError as error:
            _report(errors, path, error)
    return tasks, errors


def _report(errors: Errors, what: str, error: UserError) -> None:
    if what not in errors:
        print(f"error: {error}", file=sys.stderr)
        errors[what] = str(error)


def _units(
    task: Task, encoders: Sequence[Frozen], methods: Sequence[str], out: Path, seed: int | None
) -> Iterator[Unit]:
    light = replace(task, clips=[])
    folders = {
        encoder.name: {view: folder_of(task, encoder, view) for view in encoder.views(task.timestamps)}
        for encoder in encoders
    }
    any_view = dict(list(folders[encoders[0].name].items())[:1])
    yield Unit(light, MAJORITY, True, MAJORITY, any_view, seed, out)
    for method in methods:
        if METHODS[method].single and (task.timestamps or task.kind != "multiclass"):
            continue
        for encoder in encoders:
            yield Unit(light, encoder.name, encoder.floor, method, folders[encoder.name], seed, out)


def _scored(units: Sequence[Unit], jobs: int) -> Iterator[tuple[int, list[dict[str, Any]] | UserError]]:
    """(index of the unit, its records or its error), in the order in which they are done."""
    if jobs == 1 or len(units) < 2:
        for number, unit in enumerate(units):
            yield number, _score(unit)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(jobs, len(units)), context) as pool:
        futures: dict[Future, int] = {pool.submit(_score, unit): number for number, unit in enumerate(units)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _score(unit: Unit) -> list[dict[str, Any]] | UserError:
    try:
        return score_unit(unit)
    except UserError as error:
        return error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
