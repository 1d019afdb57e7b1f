"""Reconstruction, and telling clips apart: two views of a clip are to be closer than views of different clips.

The views are the visible tokens of the clip's earlier and later half (`MaskedAutoencoder` with a projector), so the
term costs no further pass. It is the normalized temperature-scaled cross-entropy of SimCLR (Chen et al., 2020); views
from one recording, as in COLA (Saeed et al., 2021).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from src.models.mae import MaskedAutoencoder
from src.pretraining.objectives.losses import Losses
from src.training.distributed.parallel import gather

TEMPERATURE = 0.1


def contrast(network: MaskedAutoencoder, batch: dict[str, Any]) -> Losses:
    """The other clips of the batch, of all processes, are the negatives; in a stream those of one process, since the
    processes' batches differ in size.

    Args:
        batch: as for `reconstruct`, and clip (B,): crops with the same number come from the same recording, and are not
            told apart.
    """
    output = network(batch["waveform"], batch.get("samples", batch.get("length")), batch.get("seed"))
    assert output.views is not None and output.paired is not None, "the network needs a projector"
    clip = batch.get("clip", torch.arange(len(output.views), device=output.views.device))
    across = network.training and batch.get("equal_sizes", False)
    return Losses(output.loss, len(output.target), info_nce(output.views, clip, output.paired, across))


def info_nce(views: Tensor, clip: Tensor, paired: Tensor, across: bool = False) -> Tensor:
    """Mean cross-entropy of finding a view's partner among all views of other clips.

    Args:
        views: (B, 2, E), of unit length. clip: (B,) integers. paired: (B,) bool, False for clips that are left out.
        across: gather the views of all processes, each with the same B. The mean over processes is the mean over all.
    """
    rank = dist.get_rank() if across and dist.is_initialized() else 0
    all_views, all_clip, all_paired = (gather(values) if across else values for values in (views, clip, paired))
    logits = views.flatten(0, 1) @ all_views.flatten(0, 1).T / TEMPERATURE  # (2 B, 2 B x processes)
    partner = torch.arange(len(logits), device=views.device).view(-1, 2).flip(1).flatten() + rank * len(logits)
    allowed = (clip[:, None] != all_clip) & all_paired
    allowed = allowed.repeat_interleave(2, 0).repeat_interleave(2, 1).scatter(1, partner[:, None], True)
    losses = torch.nn.functional.cross_entropy(logits.masked_fill(~allowed, -torch.inf), partner, reduction="none")
    share = len(all_views) / len(views) / (2 * all_paired.sum()).clamp(min=1)
    return torch.where(paired.repeat_interleave(2), losses, 0.0).sum() * share
