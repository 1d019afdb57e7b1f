"""Unreadable clips met in training: each is listed once in `skipped.csv`; too many of them stop the run."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L

from src.errors import UserError
from src.skipped import write_skipped


class BadClips(L.Callback):
    """
    Args:
        file: CSV of name and reason. Rank r > 0 writes skipped-r.csv next to it.
        known: (name, reason) of clips found unreadable before training.
        max_share: largest share of the clips seen that may be unreadable, 0 to 1.
    """

    min_clips = 100  # smallest denominator of the share
    agree_every = 20  # batches between decisions of all processes to stop; if one stopped alone, the others would hang

    def __init__(self, file: Path, known: list[tuple[str, str]], max_share: float) -> None:
        self.file, self.known, self.max_share = file, dict(known), max_share
        self.met: dict[str, str] = {}
        self._seen_clips = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.file = trainer.strategy.broadcast(self.file)
        if trainer.is_global_zero:
            self._write()
        else:
            self.file = self.file.with_name(f"skipped-{trainer.global_rank}.csv")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._seen_clips += len(batch["key"])
        self._add(batch["bad"])
        share = len(self.met) / max(self._seen_clips, self.min_clips)
        too_many = share > self.max_share
        if trainer.world_size > 1:
            if (batch_idx + 1) % self.agree_every:
                return
            too_many = trainer.strategy.reduce_boolean_decision(too_many, all=False)
        if too_many:
            name, reason = list(self.met.items())[-1] if self.met else ("none here", "see the other processes")
            raise UserError(
                f"{len(self.met)} of {self._seen_clips} clips could not be read (last: {name}: {reason}), more than "
                f"data.max_bad_share={self.max_share}; fix the files listed in {self.file} or raise the share"
            )

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], *_: Any
    ) -> None:
        self._add(batch["bad"])

    def _add(self, bad: list[tuple[str, str]]) -> None:
        if new := {name: reason for name, reason in bad if name not in self.met}:
            self.met.update(new)
            self._write()

    def _write(self) -> None:
        write_skipped({**self.known, **self.met}.items(), self.file)
