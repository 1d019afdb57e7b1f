"""The trained read-out of X-ARES, which calls it MLP: layer norm and one linear layer on clip embeddings.

Network, optimizer and schedule are those of xares 0.1.3: `models/simple.py` (Mlp), `trainer.py` (Trainer: Adam, cosine
decay by epoch to a tenth) and the defaults in `task.py` (TaskConfig). Its tasks change some of them, see `TASKS`.

X-ARES chooses the epoch of a k-fold task on its test fold, and that of some other tasks on the test split. Here it is
always chosen on the validation split; without one, the last epoch counts.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from src.evaluation.problem import Part, Problem, Result
from src.evaluation.scoring import choose_postprocessing, maximize, result, score_part

SEED = 42
EPOCHS, BATCH_SIZE, LEARNING_RATE, DECAY = 10, 32, 1e-3, 0.1
# src/tasks/<name>_task.py in the repository: what differs from the defaults
TASKS: dict[str, dict[str, int]] = {
    "asvspoof": {"batch_size": 64, "epochs": 5},
    "fsd50k": {"batch_size": 64},
    "fsdkaggle2018": {"batch_size": 64, "epochs": 3},
    "freemusicarchive_genre": {"epochs": 3},
    "libricount": {"batch_size": 64},
    "speechcommandsv1": {"batch_size": 64},
    "vocalimitations": {"epochs": 20},
    "voxlingua33": {"batch_size": 64},
}


def xares_mlp(
    problem: Problem,
    seed: int = SEED,
    chosen: dict[str, Any] | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    device: str | None = None,
) -> Result:
    """Method of `src.evaluation.problem`; only the epoch is chosen. device: "cuda" if there is one, else "cpu"."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(seed)
    width = problem.train.features.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, problem.num_classes)).to(where)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    best_score, best_epoch, best_state = -math.inf, epochs - 1, None
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_of(epoch, epochs, learning_rate)
        _train_epoch(network, optimizer, problem, batch_size, generator)
        score = _validate(network, problem)
        if score > best_score:
            best_score, best_epoch, best_state = score, epoch, copy.deepcopy(network.state_dict())
    if best_state is not None:
        network.load_state_dict(best_state)
    valid = None if problem.valid is None else _probabilities(network, problem, problem.valid)
    details = {"seed": seed, "epoch": best_epoch, "epochs": epochs, "batch_size": batch_size, "lr": learning_rate}
    return result(problem, _probabilities(network, problem, problem.test), valid, details=details)


def learning_rate_of(epoch: int, epochs: int, start: float) -> float:
    """Learning rate in an epoch from 0, as ignite's CosineAnnealingScheduler sets it; constant for a single epoch."""
    if epochs == 1:
        return start
    return start + (DECAY * start - start) / 2 * (1 - math.cos(math.pi * epoch / epochs))


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """One pass in random order (X-ARES shuffles within a window of 512 rows)."""
    network.train()
    device = next(network.parameters()).device
    multi = problem.kind == "multilabel"
    loss_of = nn.functional.binary_cross_entropy_with_logits if multi else nn.functional.cross_entropy
    for rows in torch.randperm(len(problem.train.features), generator=generator).split(batch_size):
        features = torch.from_numpy(problem.train.features[rows.numpy()].astype(np.float32, copy=False))
        targets = torch.from_numpy(problem.train.targets[rows.numpy()].astype(np.float32 if multi else np.int64))
        optimizer.zero_grad()
        loss_of(network(features.to(device)), targets.to(device)).backward()
        optimizer.step()


def _validate(network: nn.Module, problem: Problem) -> float:
    """Primary metric on validation, higher is better; -inf without validation or where it is undefined."""
    if problem.valid is None:
        return -math.inf
    predictions = _probabilities(network, problem, problem.valid)
    postprocessing = choose_postprocessing(problem, problem.valid, predictions)
    primary = problem.metrics[0]
    score = score_part(problem, problem.valid, predictions, postprocessing)[0][primary]
    return -math.inf if math.isnan(score) else score * (1 if maximize(primary) else -1)


@torch.no_grad()
def _probabilities(network: nn.Module, problem: Problem, part: Part) -> np.ndarray:
    """(N, C) probabilities of all rows."""
    network.eval()
    device = next(network.parameters()).device
    logits = []
    for first in range(0, len(part.features), 4096):
        features = torch.from_numpy(np.array(part.features[first : first + 4096], dtype=np.float32))
        logits.append(network(features.to(device)).cpu())
    joined = torch.cat(logits)
    return (joined.sigmoid() if problem.kind == "multilabel" else joined.softmax(1)).numpy()
