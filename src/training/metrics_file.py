"""The run's `metrics.csv`: a row per logging call, a column per metric; a resumed run appends to it."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.atomic import writing


class MetricsFile(Logger):
    """Like Lightning's CSVLogger, but keeps the rows written before a resume.

    Args:
        path: the CSV file.
        resumed_at: optimizer step of the resumed checkpoint. Rows from that step on (steps count from 0) are dropped,
            since training logs them again.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        if getattr(rank_zero_only, "rank", 0) == 0 and path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) < resumed_at]
            self._columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
            self._rewrite(rows)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml has the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{key: repr(float(value)) for key, value in metrics.items() if key != "epoch"}}
        if new := [key for key in row if key not in self._columns]:
            rows = []
            if self.path.exists():
                with open(self.path, newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
            self._columns += new
            self._rewrite(rows)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self, rows: list[dict]) -> None:
        with writing(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
