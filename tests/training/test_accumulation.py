"""Accumulated batches weigh tokens: one batch of 16 clips of different lengths = four of 4."""

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from src.config.settings import OptimizerConfig, TrainerConfig
from src.models.sizes import create_mae
from src.pretraining.module import MAEPretraining
from src.training.trainer import make_trainer

STEPS = 3


def batches(clips):
    """(number of batches) x clips of 0.3 to 2 s, always the same 16 x STEPS clips."""
    random = torch.Generator().manual_seed(0)
    length = torch.randint(4800, 32000, (16 * STEPS,), generator=random)
    waveform = torch.randn(len(length), 32000, generator=random) * 0.1
    for start in range(0, len(length), clips):
        rows = slice(start, start + clips)
        yield {"waveform": waveform[rows], "length": length[rows], "samples": length[rows].tolist(),
               "seed": torch.arange(start, start + clips), "position": start}  # fmt: skip


class Losses(L.Callback):
    def __init__(self):
        self.seen, self.norms = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(float(trainer.callback_metrics["train/loss"]))
        self.norms.append(float(module.gradient_norm()))


def trained(clips):
    model = create_mae("tiny")
    model.encoder.blocks, model.decoder.blocks = model.encoder.blocks[:2], model.decoder.blocks[:1]
    model.encoder.depth = 2
    module = MAEPretraining(model, OptimizerConfig(lr=1e-3, warmup_steps=1))
    model.encoder.init_bn.train = lambda mode=True: model.encoder.init_bn  # running statistics: those of a batch differ
    model.encoder.init_bn.training = False
    losses = Losses()
    settings = TrainerConfig(
        max_steps=STEPS, accumulate_grad_batches=16 // clips, accelerator="cpu", gradient_clip_val=1.0
    )
    trainer = make_trainer(settings, None, "auto", [losses], [], limit_val_batches=0)
    trainer.fit(module, DataLoader(list(batches(clips)), batch_size=None))
    return losses, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_one_batch_is_four_smaller_ones():
    (one, weights), (four, others) = trained(16), trained(4)
    assert one.seen == pytest.approx(four.seen, abs=1e-5)
    assert one.norms == pytest.approx(four.norms, rel=1e-5)
    assert one.seen[0] != one.seen[1]
    assert (weights - others).abs().max() < 1e-4
