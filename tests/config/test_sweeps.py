"""Each sweep's command is one that our command line reads, at the ends of each parameter and at drawn values."""

import itertools
import random
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from src import train
from src.config.files import describe_keys
from src.training.tracking import BEST

SWEEPS = sorted(Path("configs/sweep").glob("*.yaml"))


def values(parameter: dict) -> list:
    """The listed values; or both ends and one between."""
    if "values" in parameter:
        return parameter["values"]
    low, high = parameter["min"], parameter["max"]
    return [low, high, random.Random(0).uniform(low, high)]


@pytest.mark.parametrize("file", SWEEPS, ids=str)
def test_the_commands_of_a_sweep_parse(file, capsys):
    sweep = yaml.safe_load(file.read_text())
    assert Path(sweep["program"]).is_file() and set(sweep["parameters"]) <= set(describe_keys())
    combinations = list(itertools.product(*(values(each) for each in sweep["parameters"].values())))
    for combination in random.Random(1).sample(combinations, 5):
        chosen = dict(zip(sweep["parameters"], combination, strict=True))
        arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
        words = [str(word) for part in create_sweep_command(sweep["command"])
                 for word in ((arguments["args_no_hyphens"]) if part == "${args_no_hyphens}" else [part])]  # fmt: skip
        ours = words[words.index("src.train") + 1 :]
        assert train.main([*ours, "--print-config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        for name, value in chosen.items():
            section, key = name.split(".")
            assert printed[section][key] == value, name


@pytest.mark.parametrize("file", SWEEPS, ids=str)
def test_a_sweep_looks_for_the_best_of_a_metric_that_runs_keep(file):
    metric = yaml.safe_load(file.read_text())["metric"]
    name, _, best = metric["name"].rpartition(".")
    assert BEST[name] == best == {"maximize": "max", "minimize": "min"}[metric["goal"]]
