"""The methods of the evaluation by name, with what they are."""

from functools import partial
from typing import NamedTuple

import numpy as np

from src.evaluation.fewshot import fewshot
from src.evaluation.knn import knn
from src.evaluation.linear import linear
from src.evaluation.metrics import one_hot
from src.evaluation.mlp import hear_mlp
from src.evaluation.problem import Method, Problem, Result
from src.evaluation.scoring import postprocessing_grid, score_part
from src.evaluation.xares_mlp import xares_mlp


class Named(NamedTuple):
    """what: one line for the table. shares: whether the other folds use what the first one chose. single: whether it is
    only for scene tasks with one label a clip."""

    run: Method
    what: str
    shares: bool = False
    single: bool = False


METHODS: dict[str, Named] = {
    "knn": Named(partial(knn, standardize=True), "k-NN: k = 10, cosine, temperature 0.07, standardized with train"),
    "knn-raw": Named(knn, "k-NN: k = 10, cosine, temperature 0.07, not standardized (X-ARES)"),
    "linear": Named(linear, "logistic regression on standardized embeddings, strength chosen on validation"),
    "mlp": Named(hear_mlp, "HEAR's predictor: MLP, 8 points of its grid, chosen on validation", shares=True),
    "xares-mlp": Named(xares_mlp, "X-ARES's trained read-out: layer norm and linear, 10 epochs"),
    "fewshot": Named(fewshot, "nearest class mean of 5 clips a class, 20 repetitions", single=True),
}
MAJORITY = "majority"


def majority(problem: Problem) -> Result:
    """Class frequencies of train as the prediction for each row, whatever its embedding."""
    prior = one_hot(problem.train.targets, problem.num_classes).mean(0)
    predictions = np.broadcast_to(prior, (len(problem.test.targets), len(prior)))
    postprocessing = postprocessing_grid(problem)[0] if problem.test.frames is not None else None
    scores, events = score_part(problem, problem.test, predictions, postprocessing)
    return Result({}, scores, predictions, events=events)
