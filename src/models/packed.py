"""Faster linear layers on CPUs, for an encoder whose weights do not change meanwhile.

PyTorch multiplies fp32 matrices on CPUs with MKL. oneDNN, which comes with PyTorch too, is faster where it need not
arrange the weights anew for each product, and adds bias and GELU on the way.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from src.models.vit import AudioViT

_ROWS = 512  # tokens at a time that the arrangement of the weights is made for; it is right for any number


@contextmanager
def packed_linears(encoder: AudioViT) -> Iterator[None]:
    """The linear layers of the blocks compute the same (to about 1e-6) from a copy of their weights, without gradients.

    Does nothing on other devices, in other precisions, and if they are packed already.
    """
    with ExitStack() as stack:
        if can_pack(encoder):
            for module, forward in _replacements(encoder):
                module.forward = forward  # type: ignore[method-assign]
                stack.callback(delattr, module, "forward")
        yield


def can_pack(encoder: AudioViT) -> bool:
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    linears = [module for module in encoder.blocks.modules() if isinstance(module, nn.Linear)]
    return available and all(
        type(linear.weight.data) is Tensor
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype == torch.float32
        and "forward" not in vars(linear)
        for linear in linears
    )


def _replacements(encoder: AudioViT) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    fused = set()
    for mlp in (module for module in encoder.blocks.modules() if isinstance(module, Mlp)):
        if type(mlp.fc1) is nn.Linear and type(mlp.act) is nn.GELU and mlp.act.approximate == "none":
            fused.add(mlp.fc1)
            yield mlp.act, lambda values: values
    for module in encoder.blocks.modules():
        if type(module) is nn.Linear:
            yield module, _packed(module, "gelu" if module in fused else "none")


def _packed(linear: nn.Linear, activation: str) -> Callable[[Tensor], Tensor]:
    """These are the operators of TorchInductor's code for CPUs."""
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
    bias = None if linear.bias is None else linear.bias.detach()
    return partial(_multiply, weight=weight, bias=bias, activation=activation)


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "none")
