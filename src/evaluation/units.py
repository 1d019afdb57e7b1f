"""Score one method on one encoder's stored embeddings of one task, fold by fold; done folds are read from disk."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from src.atomic import writing
from src.data.sources.index import digest
from src.evaluation.frozen import Embedded
from src.evaluation.methods import MAJORITY, METHODS, majority
from src.evaluation.problem import Frames, Part, Problem, Result
from src.evaluation.resample import resample
from src.evaluation.scoring import check_problem, maximize
from src.evaluation.store import open_rows
from src.evaluation.tasks.task import Rotation, Task

_CODE = digest([file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))])


@dataclass(frozen=True)
class Unit:
    """task: without its clips. folders: of the stored embeddings of each view. seed: None for the method's own."""

    task: Task
    encoder: str
    floor: bool
    method: str
    folders: Mapping[str, Path]
    seed: int | None
    out: Path

    @property
    def key(self) -> str:
        """Hash of everything that the scores depend on."""
        folders = [f"{view} {folder.name}" for view, folder in self.folders.items()]
        return digest([self.task.annotation, *folders, self.method, str(self.seed), _CODE])

    def file(self, fold: str) -> Path:
        return self.out / "scores" / self.task.name / f"{self.key}-{fold}.json"


def score_unit(unit: Unit) -> list[dict[str, Any]]:
    """One record per fold, of plain values: scores of test and validation, what was chosen, bootstrap samples.

    Runs on one thread, so that numbers do not depend on how many units run side by side.

    Raises:
        UserError: as the method.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    records: list[dict[str, Any]] = []
    try:
        with threadpool_limits(1), np.errstate(invalid="ignore"):  # of infinite d'
            for rotation in unit.task.rotations():
                file = unit.file(rotation.name)
                if not file.exists():
                    record = _score_fold(unit, rotation, records[0]["chosen"] if records else None)
                    with writing(file) as partial:
                        partial.write_text(json.dumps(record), encoding="utf-8")
                records.append(json.loads(file.read_text(encoding="utf-8")))
    finally:
        torch.set_num_threads(threads)
    return records


def _score_fold(unit: Unit, rotation: Rotation, first: dict[str, Any] | None) -> dict[str, Any]:
    """first: what the first fold chose."""
    started = time.monotonic()
    shared = dict(first) if first and unit.method != MAJORITY and METHODS[unit.method].shares else {}
    only = shared.pop("view", None)
    primary = unit.task.metrics[0]
    best: tuple[float, str, Problem, Result] | None = None
    for view, folder in unit.folders.items():
        if only not in (None, view):
            continue
        problem = make_problem(unit.task, rotation, open_rows(folder))
        result = _run(unit, problem, shared or None)
        value = result.valid.get(primary, np.nan) * (1 if maximize(primary) else -1)
        if best is None or value > best[0] or np.isnan(best[0]):
            best = (value, view, problem, result)
    assert best is not None
    _, view, problem, result = best
    groups = [unit.task.labels[i].group or str(i) for i in rotation.test]
    seed = int(digest([unit.task.name, rotation.name])[:8], 16)
    samples = resample(problem, result, groups if len(set(groups)) < len(groups) else None, seed)
    return {
        "fold": rotation.name,
        "clips": {split: len(getattr(rotation, split)) for split in ("train", "valid", "test")},
        "test": result.test,
        "valid": result.valid,
        "view": view,
        "chosen": {**result.chosen, "view": view},
        "details": result.details,
        "samples": [round(float(value), 6) for value in samples],
        "seconds": round(time.monotonic() - started, 3),
    }


def _run(unit: Unit, problem: Problem, chosen: dict[str, Any] | None) -> Result:
    if unit.method == MAJORITY:
        return majority(problem)
    method = METHODS[unit.method].run
    return method(problem, chosen=chosen) if unit.seed is None else method(problem, unit.seed, chosen)


def make_problem(task: Task, rotation: Rotation, embedded: Embedded) -> Problem:
    """The embeddings of a rotation's clips with their targets. Raises UserError as `check_problem`."""
    part = _frame_part if task.timestamps else _scene_part
    problem = Problem(
        train=part(task, rotation.train, embedded),
        valid=part(task, rotation.valid, embedded) if len(rotation.valid) else None,
        test=part(task, rotation.test, embedded),
        kind=task.kind,
        num_classes=len(task.class_names),
        metrics=task.metrics,
        postprocessing=task.postprocessing,
        grid=task.grid,
        stop_on_score=task.stop_on_score,
    )
    check_problem(problem)
    return problem


def _scene_part(task: Task, clips: np.ndarray, embedded: Embedded) -> Part:
    return Part(embedded.rows[clips], task.targets()[clips])


def _frame_part(task: Task, clips: np.ndarray, embedded: Embedded) -> Part:
    assert embedded.times_ms is not None
    ends = np.cumsum(embedded.counts)
    rows = np.concatenate([np.arange(ends[i] - embedded.counts[i], ends[i]) for i in clips])
    clip = np.repeat(np.arange(len(clips)), embedded.counts[clips])
    events = [task.labels[i].events for i in clips]
    times = embedded.times_ms[rows]
    targets = np.zeros((len(rows), len(task.class_names)), np.float32)
    for number, each in enumerate(events):
        inside = np.flatnonzero(clip == number)
        for event in each:  # HEAR: the end is included by adding 0.0001 ms
            hit = (times[inside] >= 1000 * event.onset) & (times[inside] < 1000 * event.offset + 0.0001)
            targets[inside[hit], event.label] = 1
    consecutive = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    features = embedded.rows[rows[0] : rows[-1] + 1] if consecutive else embedded.rows[rows]
    return Part(features, targets, Frames(clip, times, events))
