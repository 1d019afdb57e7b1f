"""Batch norm over the real frames of all processes, with running statistics that are unbiased from the first step."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from src.models.log_mel import MelBatchNorm

TOLERANCE = 1e-5  # for values around 1; statistics of dB values (tens) are compared relatively


def batch(seed: int, num_clips: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 64, 40) in dB, each band with its own mean and deviation, and (B, 40) bool; padding has far other values."""
    generator = torch.Generator().manual_seed(seed)
    band = torch.arange(64.0)[:, None]
    log_mel = torch.randn(num_clips, 64, 40, generator=generator) * (5 + band / 4) - 40 + band / 3 + seed
    num_frames = torch.randint(1, 41, (num_clips,), generator=generator)
    valid = torch.arange(40) < num_frames[:, None]
    return log_mel.masked_fill(~valid[:, None], -220.0), valid


def real_frames(log_mel, valid):
    """(n, 64)."""
    return log_mel.transpose(1, 2)[valid]


def same_affine(ours: MelBatchNorm) -> nn.BatchNorm1d:
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2), ours.bias.uniform_(-1, 1)
    reference = nn.BatchNorm1d(64, momentum=0.01)
    reference.load_state_dict(ours.state_dict())
    return reference


def test_training_equals_batch_norm_on_the_real_frames():
    ours = MelBatchNorm(64)
    reference = same_affine(ours)
    log_mel, valid = batch(0)
    result = real_frames(ours(log_mel, valid), valid)
    assert (result - reference(real_frames(log_mel, valid))).abs().max() <= TOLERANCE


def test_without_padding_equals_batch_norm():
    ours = MelBatchNorm(64)
    reference = same_affine(ours)
    log_mel, _ = batch(1)
    assert (ours(log_mel) - reference(log_mel)).abs().max() <= TOLERANCE


def test_gradients_of_the_affine_map_equal_batch_norms():
    ours = MelBatchNorm(64)
    reference = same_affine(ours)
    log_mel, valid = batch(2)
    real_frames(ours(log_mel, valid), valid).sin().sum().backward()
    reference(real_frames(log_mel, valid)).sin().sum().backward()
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)  # sums over 100 frames


def test_running_statistics_are_cumulative_averages_at_first():
    ours = MelBatchNorm(64)
    means, variances = [], []
    for step in range(7):
        log_mel, valid = batch(step)
        ours(log_mel, valid)
        frames = real_frames(log_mel, valid)
        means.append(frames.mean(0)), variances.append(frames.var(0))
        torch.testing.assert_close(ours.running_mean, torch.stack(means).mean(0))
        torch.testing.assert_close(ours.running_var, torch.stack(variances).mean(0))


@pytest.mark.parametrize("steps_before", [100, 1000])
def test_running_statistics_are_exponential_averages_later(steps_before):
    ours = MelBatchNorm(64)
    log_mel, valid = batch(3)
    ours(log_mel, valid)
    ours.num_batches_tracked.fill_(steps_before)
    reference = nn.BatchNorm1d(64, momentum=0.01)
    reference.load_state_dict(ours.state_dict())
    for step in range(4, 7):
        log_mel, valid = batch(step)
        ours(log_mel, valid), reference(real_frames(log_mel, valid))
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())


def test_eval_equals_batch_norm_and_changes_nothing():
    ours = MelBatchNorm(64)
    for step in range(3):
        ours(*batch(step))
    reference = same_affine(ours.eval()).eval()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    log_mel, valid = batch(9)
    assert (ours(log_mel, valid) - reference(log_mel)).abs().max() <= TOLERANCE
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_stays_in_fp32_under_autocast():
    log_mel, valid = batch(0)
    expected = MelBatchNorm(64)(log_mel, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = MelBatchNorm(64)(log_mel, valid)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def run_process(rank: int, folder: str) -> None:
    """Three steps on the clips of this process; rank 0 has two, rank 1 has three."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    norm = MelBatchNorm(64)
    for step in range(3):
        log_mel, valid = batch(step)
        output = norm(log_mel[mine], valid[mine])
    torch.save({"output": output.detach(), "state": norm.state_dict()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_with_all_clips(tmp_path):
    mp.spawn(run_process, (str(tmp_path),), nprocs=2)
    result = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    norm = MelBatchNorm(64)
    for step in range(3):
        expected = norm(*batch(step))
    assert (torch.cat([each["output"] for each in result]) - expected).abs().max() <= TOLERANCE
    for each in result:
        torch.testing.assert_close(each["state"], dict(norm.state_dict()))
