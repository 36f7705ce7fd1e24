"""Cross-entropy straight from hidden states: logits exist for a few thousand tokens at a time.

The logits of a whole batch would be the largest tensor of a training step, several times over. Here
a chunk's logits become their own gradient in place, and are multiplied out before the next chunk's
are made; so the backward pass has nothing left to do but to scale.

For a GPU with Triton. Shape suffixes: X tokens, D model width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.precision import product_dtype

CHUNK_BYTES = 2**27
"""Of the logits that exist at once."""


def linear_cross_entropy(
    hidden_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, divisor: float, ignored: int
) -> Tensor:
    """Mean cross-entropy of ``hidden @ weight.T / divisor`` over the targets not `ignored`.

    Not a number where all are.
    """
    loss: Tensor = apply(LinearCrossEntropy, hidden_XD, weight_VD, targets_X, divisor, ignored)
    return loss


class LinearCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, divisor: float,
        ignored: int,
    ) -> Tensor:  # fmt: skip
        """The loss, float32; gradients are made here too, where they are asked for."""
        from archloop.blocks.ops.gpu.cross_entropy import cross_entropy

        dtype = product_dtype(hidden_XD)
        dtypes = hidden_XD.dtype, weight_VD.dtype
        hidden_XD, weight_VD = hidden_XD.to(dtype), weight_VD.to(dtype)
        targets_X = targets_X.contiguous()
        count = (targets_X != ignored).sum().float()
        losses_X = hidden_XD.new_empty(hidden_XD.shape[0], dtype=torch.float32)
        asked = any(ctx.needs_input_grad[:2])
        dhidden_XD = torch.empty_like(hidden_XD) if asked else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if asked else None
        size = max(1, CHUNK_BYTES // (weight_VD.shape[0] * dtype.itemsize))
        with torch.autocast(hidden_XD.device.type, enabled=False):
            for start in range(0, hidden_XD.shape[0], size):
                part = slice(start, start + size)
                logits_xV = hidden_XD[part] @ weight_VD.T
                cross_entropy(
                    logits_xV, targets_X[part], count, losses_X[part], 1 / divisor, ignored,
                    gradient=asked,
                )  # fmt: skip
                if dhidden_XD is not None and dweight_VD is not None:
                    torch.mm(logits_xV, weight_VD, out=dhidden_XD[part])
                    dweight_VD += _product(logits_xV.T, hidden_XD[part])
        if dhidden_XD is not None and dweight_VD is not None:
            ctx.save_for_backward(dhidden_XD.to(dtypes[0]), dweight_VD.to(dtypes[1]))
        return losses_X.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states and weights."""
        dhidden_XD, dweight_VD = ctx.saved_tensors
        return dhidden_XD * grads[0].to(dhidden_XD.dtype), dweight_VD * grads[0], None, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, whatever their dtype."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
