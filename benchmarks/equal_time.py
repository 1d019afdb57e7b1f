"""What an encoder has learned after the same time: the official classes and recipe, the paper's objective here, ours.

    python -m benchmarks.equal_time POOL --tasks TASKS --out OUT --minutes 3 10 --seeds 2

POOL is a folder of audio to pretrain on. Every run takes the given minutes of wall-clock on all cores, validation and
start excluded; its schedule ends with them: the number of steps comes from the speed of a trial of 20 steps.
`python -m src.evaluate` then scores all encoders on TASKS, with floors, and OUT/evaluation has its tables;
OUT/curves.png shows the means over the minutes. An interrupted command continues: finished encoders are kept.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.parity import official_mae
from benchmarks.report import machine_and_date
from src.config.files import load_config
from src.data.pretraining.datamodule import PretrainDataModule
from src.encoders.save import save_encoder
from src.encoders.stored import rename
from src.encoders.dasheng import KEYS
from src.encoders.load import load_encoder
from src.evaluate import main as evaluate
from src.models import create_encoder
from src.train import main as train
from src.training.optimizer import schedule

TRIAL_STEPS = 20
RECIPES = {  # presets and overrides; the first is trained with the official classes
    "official": ["configs/pretrain/tiny.yaml"],
    "paper": ["configs/pretrain/tiny.yaml"],
    "ours": ["configs/pretrain/tiny.yaml"],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="POOL")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[3, 10, 30])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    options = parser.parse_args(arguments)
