"""The summary at the end of a run: probe accuracies beside the baselines, losses, and paths of the results."""

import io
from pathlib import Path

import lightning.pytorch as L
from rich.console import Console
from rich.table import Table

from src.pretraining.learning_check import LearningCheck
from src.pretraining.reconstruction import Reconstruction
from src.training.callbacks.step_figures import StepFigures


def summary_table(
    trainer: L.Trainer,
    figures: StepFigures,
    check: LearningCheck | None,
    pictures: Reconstruction,
    checkpoint: Path,
    folder: Path,
) -> str:
    """The summary as plain text."""
    output = io.StringIO()
    console = Console(file=output, width=100)
    if check is not None and check.scores is not None:
        console.print(_probe_table(check))
    check_seconds = pictures.seconds + (check.seconds if check else 0.0)
    losses = {name: float(trainer.callback_metrics[name]) for name in ("train/loss", "val/loss")
              if name in trainer.callback_metrics}  # fmt: skip
    rows = {
        "steps": f"{trainer.global_step:,} in {figures.seconds / 60:.1f} minutes",
        "audio seen": f"{figures.hours:,.2f} hours, {figures.clips_per_second:.0f} clips/s",
        "waiting for data": f"{figures.wait_share:.1%} of the time",
        "checks and pictures": f"{check_seconds / max(figures.seconds, 1e-9):.1%} of the time",
        "loss": ", ".join(f"{name} {value:.4f}" for name, value in losses.items()),
        "run folder": str(folder),
        "checkpoint": str(checkpoint),
        "picture": str(pictures.latest),
        "curves": str(folder / "metrics.csv"),
    }
    width = max(map(len, rows))
    return output.getvalue() + "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _probe_table(check: LearningCheck) -> Table:
    assert check.scores is not None
    table = Table(title=f"accuracy on {len(check.test.labels)} test clips, {len(check.test.class_names)} classes")
    for column in ("", "k-NN", "linear probe"):
        table.add_column(column, justify="left" if not column else "right")
    names = {
        "majority": "majority class",
        "mel": "mel mean + deviation",
        "untrained": "untrained encoder",
        "init_from": "model.init_from",
    }
    for key, row in check.floors.items():
        table.add_row(names[key], f"{row['knn']:.3f}", f"{row['linear']:.3f}")
    table.add_row("this encoder", f"{check.scores.knn:.3f}", f"{check.scores.linear:.3f}")
    table.caption = f"feature deviation {check.scores.deviation:.3f}, effective rank {check.scores.effective_rank:.1f}"
    return table
