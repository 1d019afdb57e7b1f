"""The report of a classifier: report.json, report.html, predictions.csv, W&B, and a summary in the log."""

import csv
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger

from src.audio.decode import AudioError
from src.classification.module import AudioClassification
from src.classification.wandb_report import log_report
from src.data.labelled.splits import LabelledSet, Split
from src.evaluation.events import event_report
from src.evaluation.floors import floors
from src.evaluation.report import report
from src.evaluation.report_page import report_page
from src.pages.sounds import embedded_player
from src.training.tracking import wandb_runs
from src.verbosity import RESULT

log = logging.getLogger("src")
_PLAYER_SECONDS = 10.0  # audio of a misclassified clip on the page


def describe(labelled: LabelledSet) -> str:
    parts = ", ".join(f"{len(part)} {name}" for name, part in labelled.parts.items())
    kind = "multi-label" if labelled.multi else "one per clip"
    lines = [f"{parts} clips; {len(labelled.class_names)} classes ({kind}): {', '.join(labelled.class_names[:20])}"]
    if labelled.bad:
        path, reason = labelled.bad[0]
        lines.append(f"{len(labelled.bad)} unreadable clips skipped, e.g. {path}: {reason} (all in skipped.csv)")
    return "\n".join([*lines, *(f"note: {note}" for note in labelled.notes)])


def write_report(
    module: AudioClassification,
    labelled: LabelledSet,
    mel: dict[str, np.ndarray] | None,
    folder: Path,
    checkpoint: Path,
    seconds: float,
    loggers: Sequence[Logger],
) -> dict[str, Any]:
    """Write the report of the test split to the run folder, the log and the W&B run, if any.

    Args:
        module: after `trainer.test`.
        mel: split -> mel statistics (n, 128), for the floors; None reports no floors.

    Returns:
        The content of report.json, with "keys", "targets", "probabilities" and "groups" for `pooled_report`.
    """
    part, names = labelled.parts["test"], labelled.class_names
    index = sorted(module.predictions)
    probabilities = [module.predictions[i][0].numpy() for i in index]
    split_keys = part.keys
    keys, targets = [split_keys[i] for i in index], part.targets[index]
    groups = None if part.groups is None else [part.groups[i] for i in index]
    if module.frames:
        active = [module.predictions[i][1].numpy() > 0 for i in index]
        hop = module.model.encoder.hop_seconds
        result = event_report([part.events(i) for i in index], probabilities, active, hop, names, groups)
        probabilities = [each.max(0) for each in probabilities]
    else:
        result = report(keys, targets, np.stack(probabilities), names, labelled.multi, groups)
    result["floors"] = {}
    if mel is not None:
        train = labelled.parts["train"].targets
        result["floors"] = floors(mel["train"], train, mel["test"][index], targets, labelled.multi)
    result["notes"] = labelled.notes
    rows = ((key, 0.0, row) for key, row in zip(keys, probabilities, strict=True))
    write_predictions(folder / "predictions.csv", rows, names)
    curves = read_curves(folder / "metrics.csv")
    page = write_page(result, curves, {"test": part}, folder)
    stacked = np.stack(probabilities)
    for run in wandb_runs(loggers):
        log_report(run, {**result, "keys": keys}, targets, stacked, part, page)
    log.log(RESULT, "\n%s", summary_lines(result, seconds, checkpoint, folder))
    return {**result, "keys": keys, "targets": targets, "probabilities": stacked, "groups": groups or keys}


def pooled_report(
    results: list[dict[str, Any]], folds: list[Any], sets: list[LabelledSet], folder: Path, seconds: float
) -> None:
    """Write the report over all folds, in which each clip is tested once, with mean and deviation of the scores.

    Args:
        results: from `write_report`, one per fold.
    """
    keys = [key for each in results for key in each["keys"]]
    targets, probabilities = (np.concatenate([each[name] for each in results]) for name in ("targets", "probabilities"))
    groups = [group for each in results for group in each["groups"]]
    names, multi = sets[0].class_names, sets[0].multi
    pooled = report(keys, targets, probabilities, names, multi, None if groups == keys else groups)
    scores = {name: np.array([each["scores"][name] for each in results]) for name in results[0]["scores"]}
    pooled["folds"] = [
        {"fold": fold, "clips": each["clips"], "scores": each["scores"]}
        for fold, each in zip(folds, results, strict=True)
    ]
    pooled["mean"] = {name: float(each.mean()) for name, each in scores.items()}
    pooled["deviation"] = {name: float(each.std(ddof=1)) for name, each in scores.items()}
    if set(scores) != set(pooled["scores"]):  # event scores; the pooled scores are of whole clips
        pooled["scores"], pooled["intervals"] = pooled["mean"], {}
    floor_names = results[0]["floors"]
    pooled["floors"] = {name: float(np.mean([each["floors"][name] for each in results])) for name in floor_names}
    pooled["notes"] = [f"{len(folds)} folds, each tested once, with the next one as validation; floors are fold means"]
    rows = ((key, 0.0, row) for key, row in zip(keys, probabilities, strict=True))
    write_predictions(folder / "predictions.csv", rows, names)
    write_page(pooled, {}, {str(fold): each.parts["test"] for fold, each in zip(folds, sets, strict=True)}, folder)
    lines = [
        f"{len(folds)} folds: {name:<8} {pooled['mean'][name]:.3f} ± {pooled['deviation'][name]:.3f}" for name in scores
    ]
    lines += [f"floor {name:<11} {value:.3f}" for name, value in pooled["floors"].items()]
    log.log(
        RESULT,
        "\n%s",
        "\n".join([*lines, f"{'time':<17} {seconds / 60:.1f} minutes", f"{'report':<17} {folder / 'report.html'}"]),
    )


def write_page(
    result: dict[str, Any], curves: dict[str, list[tuple[float, float]]], parts: dict[str, Split], folder: Path
) -> str:
    """Write report.json and report.html; returns the page."""
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    mistakes = {each["path"] for each in result.get("mistakes", [])}
    players = {}
    for part in parts.values():
        for i, key in enumerate(part.keys):
            if key in mistakes:
                try:
                    players[key] = embedded_player(part.waveform(i, 0.0, _PLAYER_SECONDS), key)
                except AudioError:  # the page shows it as unreadable
                    continue
    page = report_page(folder.name, result, curves, players)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
    return page


def read_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Metric -> (step, value) points of the losses and scores in a metrics.csv."""
    if not file.exists():
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    with open(file, newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            for name, value in row.items():
                if value and name.startswith(("train/", "val/")):
                    curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return curves


def write_predictions(
    file: Path, rows: Iterable[tuple[str, float, np.ndarray]], class_names: list[str], top: int = 3
) -> int:
    """Write a row per clip or segment: path, start in seconds, the `top` classes with probabilities.

    Args:
        rows: path, start in seconds, probabilities (C,); written as they come.

    Returns:
        Number of rows.
    """
    top, count = min(top, len(class_names)), 0
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("label", "probability")]
        writer.writerow(["path", "start_seconds", *columns])
        for key, start, row in rows:
            best = np.argsort(-row, kind="stable")[:top]
            writer.writerow([key, f"{start:.2f}", *(cell for c in best for cell in (class_names[c], f"{row[c]:.4f}"))])
            count += 1
    return count


def summary_lines(result: dict[str, Any], seconds: float, checkpoint: Path, folder: Path) -> str:
    lines = []
    for name, value in result["scores"].items():
        low, high = result["intervals"].get(name, (None, None))
        interval = f"95 %: {low:.3f} to {high:.3f}, " if low is not None else ""
        lines.append(f"test {name:<10} {value:.3f}  ({interval}{result['clips']} clips)")
    lines += [f"floor {name:<9} {value:.3f}" for name, value in result["floors"].items()]
    rows = {"time": f"{seconds / 60:.1f} minutes", "checkpoint": checkpoint, "report": folder / "report.html",
            "predictions": folder / "predictions.csv"}  # fmt: skip
    return "\n".join([*lines, *(f"{name:<15} {value}" for name, value in rows.items())])
