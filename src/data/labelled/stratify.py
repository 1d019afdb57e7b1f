"""Splits of a labeled set: stratified by class, with groups kept together, fixed by a seed."""

from collections.abc import Sequence

import numpy as np


def assign_parts(
    labels: Sequence[Sequence[str]], groups: Sequence[str], shares: Sequence[float], seed: int
) -> list[int]:
    """The split (0 ... len(shares) - 1) of each clip; each class is divided by the shares, as far as groups allow.

    Groups are assigned from the largest to the smallest, equal ones in random order, each to the split that lacks most
    of the group's classes (Sechidis et al., 2011, for several labels per clip). The first split gets a class first, so
    that a class with a single clip can be learned.

    Args:
        labels: of each clip, one or several. groups: of each clip; those of one stay together.
        shares: wanted share of each part; they sum to 1.
    """
    classes = sorted({label for each in labels for label in each})
    column = {label: number for number, label in enumerate(classes)}
    names = sorted(set(groups))
    row = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))  # of each class in each group
    for each, group in zip(labels, groups, strict=True):
        for label in each:
            counts[row[group], column[label]] += 1
    wanted = np.outer(shares, counts.sum(0))  # (parts, classes), counted down
    rarity = counts / np.maximum(counts.sum(0), 1)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.lexsort((-counts[order].sum(1), -rarity[order].max(1)))]
    part = np.zeros(len(names), dtype=int)
    for group in order:
        of_interest = counts[group] > 0
        need = (wanted[:, of_interest] * rarity[group, of_interest]).sum(1)
        part[group] = int(np.argmax(need))
        wanted[part[group]] -= counts[group]
    return [int(part[row[group]]) for group in groups]
