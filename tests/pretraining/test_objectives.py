"""The contrastive objective: views that do not see each other, and who is told apart from whom, on any processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from src.models.decoder import Decoder
from src.models.initialize import initialize
from src.models.mae import MaskedAutoencoder
from src.models.projector import Projector
from src.models.vit import AudioViT
from src.pretraining.objectives import contrast, reconstruct
from src.pretraining.objectives.contrastive import TEMPERATURE, info_nce


def small_network() -> MaskedAutoencoder:
    parts = {"encoder": AudioViT(48, 2, 3), "decoder": Decoder(48, 32, 1, 4), "projector": Projector(48, 32, 16)}
    for name, part in parts.items():
        initialize(part, 0, name)
    return MaskedAutoencoder(**parts)


def some_views(number: int = 8, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(number, 2, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_loss_is_that_of_a_plain_loop():
    """Crops of one recording are no negatives of each other; a clip without a pair is left out."""
    views, clip, paired = some_views(), torch.tensor([0, 1, 2, 3, 4, 4, 5, 6]), torch.arange(8) != 3
    losses, flat = [], views.flatten(0, 1)
    for i in range(16):
        others = [k for k in range(16) if clip[k // 2] != clip[i // 2] and paired[k // 2]]
        similar = torch.stack([flat[i] @ flat[k] for k in (i ^ 1, *others)]) / TEMPERATURE
        if paired[i // 2]:
            losses.append(similar.logsumexp(0) - similar[0])
    torch.testing.assert_close(info_nce(views, clip, paired), torch.stack(losses).mean())


def test_one_recording_alone_and_no_pairs_give_zero():
    """Nothing to tell apart: no NaN, and no gradient."""
    views = some_views(3).requires_grad_()
    for clip, paired in ((torch.zeros(3), torch.ones(3)), (torch.arange(3), torch.zeros(3))):
        loss = info_nce(views, clip, paired.bool())
        loss.backward()
        assert loss == 0 and not views.grad.any()


@torch.no_grad()
def test_views_of_a_padded_batch_are_those_of_its_clips_alone():
    network = small_network().eval()
    waveform, seeds, samples = torch.randn(5, 32000) * 0.1, torch.arange(5), [32000, 9000, 5000, 3000, 700]
    together = network(waveform, samples, seeds)
    for row, length in enumerate(samples):
        alone = network(waveform[row : row + 1, :length], seeds=seeds[row : row + 1])
        assert alone.paired.item() == together.paired[row].item() == (length >= 4900)
        if alone.paired:
            torch.testing.assert_close(together.views[row : row + 1], alone.views)


@torch.no_grad()
def test_the_views_do_not_see_each_other():
    """Other sound in the later half changes the later view only."""
    network, seeds = small_network().eval(), torch.zeros(1, dtype=torch.long)
    waveform = torch.randn(1, 32000) * 0.1
    other = torch.cat([waveform[:, :20000], torch.randn(1, 12000) * 0.1], dim=1)
    first, second = (network(each, seeds=seeds).views[0] for each in (waveform, other))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-3


def test_without_a_projector_the_loss_is_the_reconstruction():
    network = small_network().eval()
    batch = {"waveform": torch.randn(3, 16000) * 0.1, "seed": torch.arange(3)}
    both = contrast(network, batch)
    network.projector = None
    alone = reconstruct(network, batch)
    assert both.num_masked == alone.num_masked and alone.contrast is None
    assert both.reconstruction != alone.reconstruction  # the halves are encoded apart


def losses_of_two(rank: int, folder: str) -> None:
    """Half of the views on each of two processes: the mean loss and the gradients are those of one."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    clip, paired = torch.tensor([0, 1, 2, 3, 1, 5, 6, 7]), torch.arange(8) != 6
    whole = some_views().requires_grad_()
    expected = info_nce(whole, clip, paired)
    expected.backward()
    mine = slice(4 * rank, 4 * rank + 4)
    views = some_views()[mine].clone().requires_grad_()
    loss = info_nce(views, clip[mine], paired[mine], across=True)
    loss.backward()
    torch.testing.assert_close(views.grad / 2, whole.grad[mine])  # DDP and FSDP average gradients
    dist.all_reduce(loss.detach_())
    torch.testing.assert_close(loss / 2, expected.detach())
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path):
    mp.spawn(losses_of_two, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("rows", [2, 3])
def test_the_objective_takes_plain_batches(rows):
    """In a notebook: a waveform is enough."""
    losses = contrast(small_network(), {"waveform": torch.randn(rows, 16000) * 0.1})
    (losses.reconstruction + losses.contrast).backward()
