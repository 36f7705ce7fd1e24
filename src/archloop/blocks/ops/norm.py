"""RMSNorm, alone or with the addition to the residual stream before it: one kernel each on a GPU.

Between two norms a block does nothing to the stream but add to it. Taken together, the addition
and the norm that follows read and write the stream once.

Shape suffixes: X leading dimensions, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.precision import product_dtype

WIDEST_KERNEL = 8192
"""Width up to which one program holds a whole row."""


def rms_norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """``w * x / sqrt(mean(x^2) + eps)``; under autocast on a GPU in the dtype of products."""
    if _on_gpu(x_XD):
        from archloop.blocks.ops.gpu.add_norm import Norm

        out_XD: Tensor = apply(Norm, x_XD, weight_D, eps, product_dtype(x_XD))
        return out_XD
    # Under autocast the stream may be of fewer bits than the weight.
    x_XD = x_XD.to(torch.promote_types(x_XD.dtype, weight_D.dtype))
    return F.rms_norm(x_XD, weight_D.shape, weight_D, eps)


def add_norm(x_XD: Tensor, y_XD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + y``, and its `rms_norm`."""
    if _on_gpu(x_XD) and triton_kernels.usable(y_XD, torch.float32, torch.bfloat16):
        from archloop.blocks.ops.gpu.add_norm import AddNorm

        sum_XD, out_XD = apply(AddNorm, x_XD, y_XD, weight_D, eps, product_dtype(x_XD))
        return sum_XD, out_XD
    x_XD = x_XD + y_XD
    return x_XD, rms_norm(x_XD, weight_D, eps)


def _on_gpu(x_XD: Tensor) -> bool:
    narrow = x_XD.shape[-1] <= WIDEST_KERNEL
    return narrow and triton_kernels.fusible(x_XD)
