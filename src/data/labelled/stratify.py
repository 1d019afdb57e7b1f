"""Split a labelled set: stratified by class, keeping groups together, fixed by a seed."""

import math
from collections.abc import Sequence

import numpy as np


def assign_parts(
    labels: Sequence[Sequence[str]], groups: Sequence[str], shares: Sequence[float], seed: int
) -> list[int]:
    """The part (0 ... len(shares) - 1) of each clip; every class follows the shares as closely as groups allow.

    Groups with the largest share of a class come first, then larger groups, ties in an order drawn from the seed. Each
    goes to the part that most needs its classes (iterative stratification for multi-label data, Sechidis et al., 2011).
    What each part needs of a class are whole numbers that add up: `whole_shares`. The last groups of a class go to
    parts without it, so that a few large groups starve no part.

    Args:
        labels: of each clip, one or more. groups: of each clip; a group stays together.
        shares: of the parts; they sum to 1.
    """
    classes = sorted({label for each in labels for label in each})
    column = {label: number for number, label in enumerate(classes)}
    names = sorted(set(groups))
    row = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))  # of each class in each group
    for each, group in zip(labels, groups, strict=True):
        for label in each:
            counts[row[group], column[label]] += 1
    wanted = whole_shares(counts.sum(0).astype(int).tolist(), shares).astype(float)  # (parts, classes), still missing
    rarity = counts / np.maximum(counts.sum(0), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.lexsort((-counts[order].sum(1), -rarity[order].max(1)))]
    part = np.zeros(len(names), dtype=int)
    lacking = wanted > 0  # (parts, classes): is to have the class and has none
    left = (counts > 0).sum(0)  # groups of each class that are not placed
    for group in order:
        present = counts[group] > 0
        need = (wanted[:, present] * rarity[group, present]).sum(1)
        rarest = int(rarity[group].argmax())
        if left[rarest] <= lacking[:, rarest].sum():
            need[~lacking[:, rarest]] = -np.inf
        part[group] = int(np.argmax(need))
        wanted[part[group]] -= counts[group]
        lacking[part[group], present] = False
        left[present] -= 1
    return [int(part[row[group]]) for group in groups]


def whole_shares(sizes: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """How many clips of each class each part gets, (parts, classes); a column adds up to the size of its class.

    A class with as many clips as there are parts is in all of them. A smaller one is in the largest part first, so
    that a class with a single clip can be learned. What is left after rounding down goes to the part that is owed
    most, over all classes so far.
    """
    used = [part for part, share in enumerate(shares) if share > 0]
    owed = np.zeros(len(shares))
    result = np.zeros((len(shares), len(sizes)), dtype=int)
    for number, size in enumerate(sizes):
        ideal = size * np.asarray(shares, dtype=float)
        if size < len(used):
            first = sorted(used, key=lambda part: (-round(shares[part], 9), -owed[part], part))
            result[first[:size], number] = 1
        else:
            for part in used:
                result[part, number] = max(1, math.floor(ideal[part] + 1e-9))
            while (rest := size - int(result[:, number].sum())) != 0:
                excess = result[:, number] - ideal
                if rest < 0:
                    part = max((p for p in used if result[p, number] > 1), key=lambda p: excess[p])
                else:
                    part = max((p for p in used if excess[p] < -1e-9), key=lambda p: owed[p] - excess[p])
                result[part, number] += 1 if rest > 0 else -1
        owed += ideal - result[:, number]
    return result
