"""What a classifier's run leaves for reading: report.json, report.html, predictions.csv, W&B, and a few lines."""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from src.audio.decode import SAMPLE_RATE, AudioError
from src.classification.module import AudioClassification
from src.data.labelled.splits import LabelledSet, Split
from src.evaluation.events import event_report
from src.evaluation.floors import floors
from src.evaluation.report import report
from src.evaluation.report_page import player, report_page

log = logging.getLogger("src")
_HEARD_SECONDS = 10.0  # of a mistake


def describe(labelled: LabelledSet) -> str:
    parts = ", ".join(f"{len(part)} {name}" for name, part in labelled.parts.items())
    kind = "several a clip" if labelled.multi else "one a clip"
    lines = [f"{parts} clips; {len(labelled.class_names)} classes ({kind}): {', '.join(labelled.class_names[:20])}"]
    if labelled.bad:
        path, reason = labelled.bad[0]
        lines.append(f"{len(labelled.bad)} unreadable clips left out, {path} for one: {reason} (all in skipped.csv)")
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
    """Everything about the test part, into the run's folder and the W&B run, if there is one.

    Args:
        module: that has been tested. mel: (n, 128) by part, for the floors.

    Returns:
        What report.json holds, and "keys", "targets", "probabilities" and "groups" for a summary of folds.
    """
    part, names = labelled.parts["test"], labelled.class_names
    index = sorted(module.predictions)
    probabilities = [module.predictions[i][0].numpy() for i in index]
    all_keys = part.keys
    keys, targets = [all_keys[i] for i in index], part.targets[index]
    groups = None if part.groups is None else [part.groups[i] for i in index]
    if module.frames:
        truth = [module.predictions[i][1].numpy() > 0 for i in index]
        hop = module.model.encoder.hop_seconds
        found = event_report([part.events(i) for i in index], probabilities, truth, hop, names, groups)
        probabilities = [each.max(0) for each in probabilities]
    else:
        found = report(keys, targets, np.stack(probabilities), names, labelled.multi, groups)
    found["floors"] = {}
    if mel is not None:
        train = labelled.parts["train"].targets
        found["floors"] = floors(mel["train"], train, mel["test"][index], targets, labelled.multi)
    found["notes"] = labelled.notes
    write_predictions(folder / "predictions.csv", [(key, 0.0) for key in keys], np.stack(probabilities), names)
    curves = read_curves(folder / "metrics.csv")
    page = write_page(found, curves, {"test": part}, folder)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_report(logger, found, page)
    log.info("\n%s", closing_lines(found, seconds, checkpoint, folder))
    return {
        **found, "keys": keys, "targets": targets, "probabilities": np.stack(probabilities), "groups": groups or keys,
    }  # fmt: skip


def log_report(logger: WandbLogger, found: dict[str, Any], page: str) -> None:
    """Scores into the summary of the W&B run, and the page."""
    import wandb

    scores = {name: found[name] for name in ("scores", "intervals", "floors")}
    logger.experiment.summary.update({"test_report": scores})
    logger.experiment.log({"report": wandb.Html(page, inject=False)})


def pooled_report(
    found: list[dict[str, Any]], folds: list[Any], sets: list[LabelledSet], folder: Path, seconds: float
) -> None:
    """Of all folds: each clip was tested once; mean and deviation of the folds' scores."""
    keys = [key for each in found for key in each["keys"]]
    targets, chance = (np.concatenate([each[name] for each in found]) for name in ("targets", "probabilities"))
    groups = [group for each in found for group in each["groups"]]
    whole = report(keys, targets, chance, sets[0].class_names, sets[0].multi, None if groups == keys else groups)
    of_folds = [
        {"fold": fold, "clips": each["clips"], "scores": each["scores"]}
        for fold, each in zip(folds, found, strict=True)
    ]
    values = {name: np.array([each["scores"][name] for each in found]) for name in found[0]["scores"]}
    whole["folds"] = of_folds
    whole["mean"] = {name: float(each.mean()) for name, each in values.items()}
    whole["deviation"] = {name: float(each.std(ddof=1)) for name, each in values.items()}
    if set(values) != set(whole["scores"]):  # of events: the pooled numbers are of whole clips
        whole["scores"], whole["intervals"] = whole["mean"], {}
    floors_of = found[0]["floors"]
    whole["floors"] = {name: float(np.mean([each["floors"][name] for each in found])) for name in floors_of}
    whole["notes"] = [f"{len(folds)} folds, each tested once, the next one for validation; floors are their mean"]
    write_predictions(folder / "predictions.csv", [(key, 0.0) for key in keys], chance, sets[0].class_names)
    write_page(whole, {}, {str(fold): each.parts["test"] for fold, each in zip(folds, sets, strict=True)}, folder)
    lines = [
        f"{len(folds)} folds: {name:<8} {whole['mean'][name]:.3f} ± {whole['deviation'][name]:.3f}" for name in values
    ]
    lines += [f"floor {name:<11} {value:.3f}" for name, value in whole["floors"].items()]
    log.info(
        "\n%s",
        "\n".join([*lines, f"{'time':<17} {seconds / 60:.1f} minutes", f"{'report':<17} {folder / 'report.html'}"]),
    )


def write_page(
    found: dict[str, Any], curves: dict[str, list[tuple[float, float]]], parts: dict[str, Split], folder: Path
) -> str:
    """report.json and report.html; returns the page."""
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wanted = {each["path"] for each in found.get("mistakes", [])}
    players = {}
    for part in parts.values():
        for i, key in enumerate(part.keys):
            if key in wanted:
                try:
                    players[key] = player(part.waveform(i, 0.0, _HEARD_SECONDS), SAMPLE_RATE)
                except AudioError:  # the page says that it cannot be read
                    continue
    page = report_page(folder.name, found, curves, players)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
    return page


def read_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of the losses and scores that a run logged."""
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
    file: Path, rows: list[tuple[str, float]], probabilities: np.ndarray, class_names: list[str], top: int = 3
) -> None:
    """A row a clip, or a piece of a long one: path, where it begins in seconds, the likeliest classes."""
    top = min(top, len(class_names))
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("label", "probability")]
        writer.writerow(["path", "start_seconds", *columns])
        for (key, start), row in zip(rows, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            writer.writerow([key, f"{start:.2f}", *(cell for c in best for cell in (class_names[c], f"{row[c]:.4f}"))])


def closing_lines(found: dict[str, Any], seconds: float, checkpoint: Path, folder: Path) -> str:
    lines = []
    for name, value in found["scores"].items():
        low, high = found["intervals"].get(name, (None, None))
        interval = f"95 %: {low:.3f} to {high:.3f}, " if low is not None else ""
        lines.append(f"test {name:<10} {value:.3f}  ({interval}{found['clips']} clips)")
    lines += [f"floor {name:<9} {value:.3f}" for name, value in found["floors"].items()]
    rows = {"time": f"{seconds / 60:.1f} minutes", "checkpoint": checkpoint, "report": folder / "report.html",
            "predictions": folder / "predictions.csv"}  # fmt: skip
    return "\n".join([*lines, *(f"{name:<15} {value}" for name, value in rows.items())])
