"""Muon for the matrices of transformer blocks, AdamW for all other parameters."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from src.models.initialize import fill

MOMENTUM = 0.95
_ITERATIONS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315  # of Jordan et al.


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024): the momentum of a matrix, with all its singular values moved near 1, is its update.

    The update is scaled to the size of AdamW's (Liu et al., 2025, "Muon is scalable for LLM training"), so both take
    the same learning rate and weight decay. `torch.optim.Muon` (2.9) rounds to bf16 and updates matrices only.

    Args:
        groups: with "muon", True for groups of matrices; the others are AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:  # first: what it does to the gradients concerns all groups
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _keep_if_bad(self, values: Tensor, before: Tensor) -> None:
        """As fused AdamW: nothing changes in a step whose `found_inf` is set, which the host does not know."""
        if (bad := getattr(self, "found_inf", None)) is not None:
            _local(values).copy_(torch.where(bad > 0, before, _local(values)))

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Matrices of one shape are orthogonalized in one batch."""
        same: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same[parameter.shape].append(parameter)
        for parameters in same.values():
            updates = orthogonalize(torch.stack([_whole(self._nesterov(parameter)) for parameter in parameters]))
            for parameter, update in zip(parameters, updates, strict=True):
                before = _local(parameter).clone()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                change = torch.zeros_like(parameter)
                fill(change, update)
                parameter.add_(change, alpha=-group["lr"])
                self._keep_if_bad(parameter, before)

    def _nesterov(self, parameter: Tensor) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())  # AdamW's load_state_dict looks for it
            state["momentum"] = torch.zeros_like(gradient)
        before = _local(state["momentum"]).clone()
        update = gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)
        self._keep_if_bad(state["momentum"], before)
        return update


def orthogonalize(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the same with singular values of about 0.7 to 1.2, times 0.2 sqrt(max(rows, columns)).

    Five Newton-Schulz iterations, in bf16 on a GPU. An attention layer's query, key and value are orthogonalized apart.
    """
    number, rows, columns = matrices.shape
    if rows == 3 * columns:  # qkv
        return orthogonalize(matrices.reshape(3 * number, columns, columns)).reshape(number, rows, columns)
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x.mT if rows > columns else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = iterate_by_squares(x) if not x.is_cuda and x.shape[2] >= 2 * x.shape[1] else iterate(x)
    x = x.mT if rows > columns else x
    return x.to(matrices.dtype) * (0.2 * max(rows, columns) ** 0.5)


def iterate(x: Tensor) -> Tensor:
    """x <- (a + b x x' + c (x x')^2) x, five times."""
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, square, x, beta=_A)
    return x


def iterate_by_squares(x: Tensor) -> Tensor:
    """The same from products of the square matrix x x' alone: two thirds of the time where x is four times as wide as
    high. Needs fp32."""
    square, a = x @ x.mT, _A * torch.eye(x.shape[1])
    factor = step = a + torch.baddbmm(square, square, square, beta=_B, alpha=_C)
    for _ in range(_ITERATIONS - 1):
        square = step @ square @ step
        step = a + torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        factor = step @ factor
    return factor @ x


def _whole(values: Tensor) -> Tensor:
    return values.full_tensor() if isinstance(values, DTensor) else values


def _local(values: Tensor) -> Tensor:
    return values.to_local() if isinstance(values, DTensor) else values
