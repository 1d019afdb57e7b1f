"""Synchronizations of whole batches of a Lightning pretraining run on a GPU, with the callbacks of each step."""

import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.syncs import debug_mode, describe, listed
from src.config.settings import OptimizerConfig, TrainerConfig
from src.models import create_mae
from src.pretraining.module import MAEPretraining
from src.training.callbacks.bad_steps import SkipBadSteps
from src.training.callbacks.step_figures import StepFigures
from src.training.distributed.parallel import compile_blocks
from src.training.trainer import make_trainer

LOGGED = 10  # steps between logs: these may synchronize
STEPS = 3 * LOGGED  # the first ten compile, the next ten are listed, the last ten run in torch's error mode


class Noise(Dataset):
    """Batches as `CropDataset` makes them: clips of different lengths, but of one padded length."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        clips, samples = 16, 160000
        length = [samples - row * 4000 for row in range(clips)]
        return {
            "waveform": torch.randn(clips, samples) * 0.1, "length": torch.tensor(length), "samples": length,
            "seed": torch.arange(clips) + number, "source": torch.zeros(clips, dtype=torch.int64),
            "key": ["noise"] * clips, "position": number * clips, "bad": [],
        }  # fmt: skip

    def __len__(self) -> int:
        return 10**6


class Watch(L.Callback):
    """Lists, then forbids synchronizations in the batches after which nothing is logged."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        advance, on_gpu = loop.advance, pl_module.device.type == "cuda"

        def watched(fetcher: Any) -> None:
            stage, within = divmod(trainer.global_step, LOGGED)
            context: Any = contextlib.nullcontext()
            if on_gpu and stage and within < LOGGED - 1:
                context = listed(self.calls) if stage == 1 else debug_mode("error")
                self.steps += stage == 1
            with context:
                advance(fetcher)

        loop.advance = watched  # type: ignore[method-assign]


def train(device: torch.device) -> str:
    """Train tiny for 30 steps and describe the synchronizations."""
    model = create_mae("tiny")
    if device.type == "cuda":
        compile_blocks(model)
    module = MAEPretraining(model, OptimizerConfig(warmup_steps=2))
    watch, steps = Watch(), STEPS if device.type == "cuda" else 2
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [SkipBadSteps(Path(folder, "skipped.csv"), 3), StepFigures(1), watch]
        settings = TrainerConfig(
            max_steps=steps, log_every_n_steps=LOGGED, gradient_clip_val=1.0,
            accelerator="gpu" if device.type == "cuda" else "cpu",
        )  # fmt: skip
        trainer = make_trainer(settings, Path(folder), "auto", callbacks, [], limit_val_batches=0)
        loader = DataLoader(Noise(), batch_size=None, num_workers=0, pin_memory=device.type == "cuda")
        errors = "passes"
        try:
            trainer.fit(module, loader)
        except RuntimeError as error:
            errors = f"FAILS, {str(error).splitlines()[0]}"
    if not watch.steps:
        return f"training: {trainer.global_step} steps; without a GPU, synchronizations cannot be counted"
    listing = describe(watch.calls, watch.steps)
    return f'synchronizations, training with callbacks: {listing}\n    set_sync_debug_mode("error"): {errors}'
