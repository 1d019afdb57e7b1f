"""What the hardware decides: precision and compilation."""

import pytest
import torch

from src.config.settings import TrainerConfig
from src.training import trainer
from src.training.trainer import compiled, precision


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_emulated_bf16_is_never_chosen(monkeypatch, native, expected):
    """torch says of a GPU before Ampere that it supports bf16, since it can be emulated."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert precision(TrainerConfig()) == expected
    assert precision(TrainerConfig(precision="bf16-mixed")) == "bf16-mixed"
    assert precision(TrainerConfig(accelerator="cpu")) == "32-true"


@pytest.mark.parametrize(
    ("gpu", "compiler", "setting", "expected"),
    [
        (True, "/usr/bin/cc", None, True), (True, None, None, False), (False, "/usr/bin/cc", None, False),
        (True, "/usr/bin/cc", False, False), (False, None, True, True),
    ],
)  # fmt: skip
def test_blocks_are_compiled_on_a_gpu_unless_told_otherwise(monkeypatch, gpu, compiler, setting, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(trainer.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(trainer.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    assert compiled(TrainerConfig(compile=setting)) == expected
