"""A progress bar on a terminal, occasional lines elsewhere."""

from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from src.training.callbacks.step_figures import StepFigures
from src.training.callbacks.steps import stepped


class ProgressLine(L.Callback):
    """Loss, speed and remaining time: a rich bar on a terminal, about fifty lines per run in a log file."""

    def __init__(self, console: Console, figures: StepFigures) -> None:
        self.console, self.figures = console, figures
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps = int(trainer.estimated_stepping_batches)
        logged = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._every = logged * max(1, self._steps // 50 // logged)  # with the metrics: the host waits for the GPU then
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task("", total=self._steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not stepped(trainer, batch_idx):
            return
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        every = self._every if self._bar is None else trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % every and step != self._steps:
            return
        seconds = round(self.figures.seconds_to_go(trainer))
        loss = float(trainer.callback_metrics["train/loss"])  # mean over processes
        text = (
            f"loss {loss:.3f}  {self.figures.clips_per_second:.0f} clips/s  "
            f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} to go"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            self.console.print(f"step {step} of {self._steps}  {text}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
