"""HEAR's predictor: a multi-layer perceptron on fixed embeddings, chosen from a grid by its validation score.

Every number and rule is that of hear-eval-kit 2021.1.3, `heareval/predictions/task_predictions.py` (names in brackets)
and the default of 8 grid points in `heareval/predictions/runner.py`. Among them is one that its code hides: training
rows are not shuffled (`dataloader_from_split_name` compares a list with "train"), so that a batch has the same rows in
each epoch.

Random numbers start from `seed` for each fold, where the kit goes on. On the CPU, the first fold's predictions are the
kit's to the bit if its data loaders and model summary, which draw random numbers too, are kept from that; see
`benchmarks/hear_parity.py`.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import ParameterGrid
from torch import Tensor, nn

from src.errors import UserError
from src.evaluation.problem import Part, Problem, Result
from src.evaluation.scoring import choose_postprocessing, maximize, postprocessing_grid, result, score_part

SEED = 42  # task_predictions
GRID_POINTS = 8  # runner.py
GRID: dict[str, list[Any]] = {  # PARAM_GRID; single values that only name PyTorch classes are in `Predictor`
    "hidden_layers": [1, 2],
    "hidden_dim": [1024],
    "dropout": [0.1],
    "lr": [3.2e-3, 1e-3, 3.2e-4, 1e-4],
    "patience": [20],  # checks without a better score
    "max_epochs": [500],
    "check_val_every_n_epoch": [3],
    "batch_size": [1024],
    "initialization": ["xavier_uniform_", "xavier_normal_"],
}
TASK_GRIDS = {"dcase2016_task2": {"check_val_every_n_epoch": [10]}}  # TASK_SPECIFIC_PARAM_GRID; for `Problem.grid`
_INITIALIZATIONS = {"xavier_uniform_": nn.init.xavier_uniform_, "xavier_normal_": nn.init.xavier_normal_}
_RESIDENT_BYTES = 2 << 30  # features up to this size stay on the device


class Predictor(nn.Module):
    """Hidden layers of linear, batch norm, dropout, ReLU, then a linear layer [FullyConnectedPrediction]."""

    def __init__(self, num_features: int, num_classes: int, settings: dict[str, Any]) -> None:
        super().__init__()
        initialize = _INITIALIZATIONS[settings["initialization"]]
        layers: list[nn.Module] = []
        width, gain = num_features, 1.0  # nothing is known of the activation before
        for _ in range(settings["hidden_layers"]):
            linear = nn.Linear(width, settings["hidden_dim"])
            initialize(linear.weight, gain=gain)
            layers += [linear, nn.BatchNorm1d(linear.out_features), nn.Dropout(settings["dropout"]), nn.ReLU()]
            width, gain = linear.out_features, nn.init.calculate_gain("relu")
        projection = nn.Linear(width, num_classes)
        initialize(projection.weight, gain=gain)
        self.layers = nn.Sequential(*layers, projection)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, C)."""
        return self.layers(features)


@dataclass
class Trained:
    """The best state of one grid point. score: on validation, the higher the better. epoch: from 0."""

    settings: dict[str, Any]
    score: float
    epoch: int
    state: dict[str, Tensor]


def hear_mlp(
    problem: Problem,
    seed: int = SEED,
    chosen: dict[str, Any] | None = None,
    grid_points: int = GRID_POINTS,
    device: str | None = None,
) -> Result:
    """Method of `src.evaluation.problem`.

    Args:
        chosen: settings of the first fold, which searches the grid; other folds train these only.
        grid_points: how many points of the grid are drawn.
        device: "cuda" if there is one, else "cpu".

    Returns:
        A result with the chosen settings; details have the epoch and the validation score of each point, of which the
        highest wins: the primary metric (negative if lower is better) or the negative loss, None if undefined.

    Raises:
        UserError: no validation split, fewer than two training rows, an unknown key in `problem.grid`, several values
            of postprocessing with `stop_on_score` off, a number of epochs without a single check.
    """
    _check(problem)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    points = [chosen] if chosen else draw_points({**GRID, **problem.grid}, grid_points, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trained = [_train(problem, settings, where) for settings in points]
    best = max(trained, key=lambda each: each.score)  # the first of equal ones [sort_grid_points]
    network = Predictor(problem.train.features.shape[1], problem.num_classes, best.settings).to(where)
    network.load_state_dict(best.state)
    assert problem.valid is not None
    valid, test = (_probabilities(network, problem, part) for part in (problem.valid, problem.test))
    details = {
        "seed": seed,
        "epoch": best.epoch,
        "points": [
            {**each.settings, "score": each.score if np.isfinite(each.score) else None, "epoch": each.epoch}
            for each in trained
        ],
    }
    return result(problem, test, valid, best.settings, details)


def draw_points(grid: dict[str, list[Any]], number: int, seed: int) -> list[dict[str, Any]]:
    """The first `number` of all combinations, shuffled [task_predictions].

    scikit-learn's order of combinations and Python's generator give the kit's points, in its order.
    """
    points = list(ParameterGrid(grid))
    random.Random(seed).shuffle(points)
    return points[:number]


def _train(problem: Problem, settings: dict[str, Any], device: torch.device) -> Trained:
    """Train one grid point; stops after `patience` checks without a better score or at one that isn't finite."""
    network = Predictor(problem.train.features.shape[1], problem.num_classes, settings).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["lr"])
    best = Trained(settings, -np.inf, -1, {})
    train = _Batches(problem, problem.train, settings["batch_size"], device)
    assert problem.valid is not None
    valid = _Batches(problem, problem.valid, settings["batch_size"], device)
    waited = 0
    for epoch in range(settings["max_epochs"]):
        _train_epoch(network, optimizer, train, problem)
        if (epoch + 1) % settings["check_val_every_n_epoch"]:
            continue
        score = _validate(network, problem, valid)
        waited += 1
        if score > best.score or not best.state:
            best.score = -np.inf if np.isnan(score) else score
            best.epoch, best.state, waited = epoch, copy.deepcopy(network.state_dict()), 0
        if waited >= settings["patience"] or not np.isfinite(score):
            break
    return best


def _train_epoch(network: Predictor, optimizer: torch.optim.Optimizer, batches: "_Batches", problem: Problem) -> None:
    network.train()
    for features, targets in batches:
        if len(features) == 1:  # a last batch of one row, for which batch norm isn't defined; HEAR fails
            continue
        optimizer.zero_grad()
        _loss(network(features), targets, problem).backward()
        optimizer.step()


def _validate(network: Predictor, problem: Problem, batches: "_Batches") -> float:
    """The primary metric, or the loss, with the sign by which higher is better; in single precision, as HEAR's."""
    logits = _logits(network, batches)
    if not problem.stop_on_score:
        return -float(_loss(logits, torch.cat([targets for _, targets in batches]), problem))
    predictions, part = _activate(logits, problem), batches.part
    scores, _ = score_part(problem, part, predictions, choose_postprocessing(problem, part, predictions))
    primary = problem.metrics[0]
    return float(np.float32(scores[primary])) * (1 if maximize(primary) else -1)


@torch.no_grad()
def _logits(network: Predictor, batches: "_Batches") -> Tensor:
    network.eval()
    return torch.cat([network(features) for features, _ in batches])


def _probabilities(network: Predictor, problem: Problem, part: Part) -> np.ndarray:
    """(N, C) probabilities of all rows."""
    device = next(network.parameters()).device
    return _activate(_logits(network, _Batches(problem, part, GRID["batch_size"][0], device)), problem)


def _activate(logits: Tensor, problem: Problem) -> np.ndarray:
    activated = logits.sigmoid() if problem.kind == "multilabel" else logits.softmax(1)
    return activated.cpu().numpy()


def _loss(logits: Tensor, targets: Tensor, problem: Problem) -> Tensor:
    if problem.kind == "multilabel":
        return nn.functional.binary_cross_entropy_with_logits(logits, targets)
    return nn.functional.cross_entropy(logits, targets)


class _Batches:
    """Consecutive rows with their targets as tensors; on the device throughout if they fit, else read each time."""

    def __init__(self, problem: Problem, part: Part, batch_size: int, device: torch.device) -> None:
        self.part, self._size, self._device = part, batch_size, device
        self._kind = np.float32 if problem.kind == "multilabel" else np.int64
        self._resident = list(self._read()) if part.features.nbytes <= _RESIDENT_BYTES else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._resident) if self._resident is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(self.part.features), self._size):
            rows = slice(first, first + self._size)
            features = torch.from_numpy(np.array(self.part.features[rows], dtype=np.float32))
            targets = torch.from_numpy(np.array(self.part.targets[rows], dtype=self._kind))
            yield features.to(self._device), targets.to(self._device)


def _check(problem: Problem) -> None:
    grid = {**GRID, **problem.grid}
    if problem.valid is None:
        raise UserError("the mlp method chooses its settings on a validation split, which the task doesn't have")
    if len(problem.train.features) < 2:
        raise UserError(f"the mlp method needs two training rows or more; the task has {len(problem.train.features)}")
    if unknown := set(grid) - set(GRID):
        raise UserError(f"grid of the mlp method: unknown {', '.join(sorted(unknown))}; choose from {', '.join(GRID)}")
    if bad := set(grid["initialization"]) - set(_INITIALIZATIONS):
        raise UserError(f"grid of the mlp method: initialization {bad}; choose from {', '.join(_INITIALIZATIONS)}")
    if max(grid["check_val_every_n_epoch"]) > min(grid["max_epochs"]):
        raise UserError("grid of the mlp method: check_val_every_n_epoch is larger than max_epochs; nothing is checked")
    if problem.train.frames is not None and not problem.stop_on_score and len(postprocessing_grid(problem)) > 1:
        raise UserError("without stop_on_score, one value each of median_filter_ms and min_duration has to be given")
