"""Faster linear layers on CPUs, for an encoder whose weights do not change meanwhile.

PyTorch multiplies fp32 matrices on CPUs with MKL. oneDNN, which comes with PyTorch too, is faster where it need not
arrange the weights anew for each product.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from src.models.vit import AudioViT

_ROWS = 512  # tokens at a time that the arrangement of the weights is made for; it is right for any number


@contextmanager
def packed_linears(encoder: AudioViT) -> Iterator[None]:
    """The linear layers of the blocks compute the same (to about 1e-6) from a copy of their weights, without gradients.

    Does nothing on other devices, in other precisions, and if they are packed already. Other threads may use the
    encoder at the same time.
    """
    linears = [module for module in encoder.blocks.modules() if type(module) is nn.Linear and _can_pack(module)]
    try:
        for linear in linears:
            linear.forward = _Packed(linear)  # type: ignore[assignment, method-assign]
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


class _Packed:
    """The operators are those of TorchInductor's code for CPUs."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")


def _can_pack(linear: nn.Linear) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and type(linear.weight.data) is Tensor
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        and "forward" not in vars(linear)
    )
