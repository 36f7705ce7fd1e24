"""HGRN2's gate, ``f = b + (1 - b) sigmoid(x)``: its logarithm, and what it lets go of.

Shape suffixes: X leading dimensions, D channels.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.precision import recurrent_dtype


def bounded_gate(x_XD: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Keys ``1 - f`` and log-decays ``log f`` (X, D), without cancellation at either end.

    Args:
        x_XD: the projection.
        bound: b, at least 0 and less than 1.

    Returns:
        keys, on a GPU in the dtype of x, else as the log-decays; and these, in at least float32.
    """
    if triton_kernels.usable(x_XD, torch.float32, torch.bfloat16):
        from archloop.blocks.ops.gpu.bounded_gate import BoundedGate

        k_XD, g_XD = apply(BoundedGate, x_XD, bound)
        return k_XD, g_XD
    x_XD = x_XD.to(recurrent_dtype(x_XD.dtype))
    k_XD, g_XD = (1 - bound) * torch.sigmoid(-x_XD), F.logsigmoid(x_XD)
    if bound > 0:
        sum_XD = torch.logaddexp(g_XD + math.log1p(-bound), torch.full_like(g_XD, math.log(bound)))
        g_XD = torch.where(k_XD > 0.5, sum_XD, torch.log1p(-k_XD.clamp(max=0.5)))
    return k_XD, g_XD
