"""What an objective returns."""

from typing import NamedTuple

from torch import Tensor


class Losses(NamedTuple):
    """reconstruction: scalar, mean over the batch's masked tokens, of which there are num_masked.
    contrast: scalar, whose mean over the processes is the mean over all their clips; None without this term.
    The loss is their sum, with the reconstruction as a mean over the masked tokens of all processes."""

    reconstruction: Tensor
    num_masked: int
    contrast: Tensor | None = None
