"""Unreadable clips met on the way: listed once by name and reason in `skipped.csv`, an error when they are too many."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L

from src.errors import UserError
from src.skipped import write_skipped


class BadClips(L.Callback):
    """Args: file: the list. known: (name, reason) found before the run. max_share: of the clips seen, 0 to 1."""

    smallest_sample = 100  # clips seen before a share means anything
    agree_every = 20  # batches between two times that processes agree whether to stop: one alone would leave them hang

    def __init__(self, file: Path, known: list[tuple[str, str]], max_share: float) -> None:
        self.file, self.known, self.max_share = file, dict(known), max_share
        self.met: dict[str, str] = {}
        self._seen_clips = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.file = trainer.strategy.broadcast(self.file)
        if trainer.is_global_zero:
            self._write()
        else:  # what this process meets
            self.file = self.file.with_name(f"skipped-{trainer.global_rank}.csv")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self._seen_clips += len(batch["key"])
        if new := {name: reason for name, reason in batch["bad"] if name not in self.met}:
            self.met.update(new)
            self._write()
        share = len(self.met) / max(self._seen_clips, self.smallest_sample)
        too_many = share > self.max_share
        if trainer.world_size > 1:
            if (batch_idx + 1) % self.agree_every:
                return
            too_many = trainer.strategy.reduce_boolean_decision(too_many, all=False)
        if too_many:
            name, reason = list(self.met.items())[-1] if self.met else ("none here", "another process met them")
            raise UserError(
                f"{len(self.met)} of {self._seen_clips} clips could not be read (the last: {name}: {reason}), "
                f"more than data.max_bad_share={self.max_share}; see {self.file}, mend the files or raise the share"
            )

    def _write(self) -> None:
        write_skipped({**self.known, **self.met}.items(), self.file)
