"""LFM2's gated convolution between its projections: ``c * conv(b * u)``; one kernel on a GPU.

Shape suffixes: B batch, T time, D channels, K kernel; E = 3D.
"""

from torch import Tensor

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.conv import causal_conv

LONGEST_KERNEL = 16
"""The kernel reads its surroundings once for each weight of a channel."""


def gated_conv(x_BTE: Tensor, weight_DK: Tensor) -> Tensor:
    """``c * causal_conv(b * u)`` of ``(b, c, u)`` side by side, each row from its own start."""
    if weight_DK.shape[1] <= LONGEST_KERNEL and triton_kernels.fusible(x_BTE):
        from archloop.blocks.ops.gpu.gated_conv import GatedConv

        y_BTD: Tensor = apply(GatedConv, x_BTE, weight_DK)
        return y_BTD
    b_BTD, c_BTD, u_BTD = x_BTE.chunk(3, -1)
    return c_BTD * causal_conv(b_BTD * u_BTD, weight_DK)
