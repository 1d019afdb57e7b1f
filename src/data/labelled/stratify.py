"""Split a labelled set: stratified by class, keeping groups together, fixed by a seed."""

from collections.abc import Sequence

import numpy as np


def assign_parts(
    labels: Sequence[Sequence[str]], groups: Sequence[str], shares: Sequence[float], seed: int
) -> list[int]:
    """The part (0 ... len(shares) - 1) of each clip; every class follows the shares as closely as groups allow.

    Groups with the largest share of a class come first, then larger groups, ties in an order drawn from the seed. Each
    goes to the part that most needs its classes (iterative stratification for multi-label data, Sechidis et al., 2011).
    The first part gets a class first, so that a class with a single clip can be learned.

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
    wanted = np.outer(shares, counts.sum(0))  # (parts, classes), clips still missing
    rarity = counts / np.maximum(counts.sum(0), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.lexsort((-counts[order].sum(1), -rarity[order].max(1)))]
    part = np.zeros(len(names), dtype=int)
    for group in order:
        present = counts[group] > 0
        need = (wanted[:, present] * rarity[group, present]).sum(1)
        part[group] = int(np.argmax(need))
        wanted[part[group]] -= counts[group]
    return [int(part[row[group]]) for group in groups]
