"""Steps and log-decays from a projection, ``-rate * softplus(x + bias)``: one kernel on a GPU.

Shape suffixes: X leading dimensions, D channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.precision import precise, recurrent_dtype


def step_size(x_XD: Tensor, bias_D: Tensor) -> Tensor:
    """``softplus(x + bias)``, a time step of at least 0, in at least float32.

    Args:
        x_XD: the projection.
        bias_D: added to it.
    """
    if triton_kernels.fusible(x_XD):
        return decay_gate(x_XD, bias_D, -torch.ones_like(bias_D))
    return F.softplus(precise(x_XD) + precise(bias_D))


def decay_gate(x_XD: Tensor, bias_D: Tensor, rate_D: Tensor) -> Tensor:
    """Log-decays (X, D), at most 0, in at least float32.

    Args:
        x_XD: the projection.
        bias_D: added to it.
        rate_D: decay per unit of step, not negative.
    """
    dtype = recurrent_dtype(x_XD.dtype)
    bias_D, rate_D = bias_D.to(dtype), rate_D.to(dtype)
    if triton_kernels.usable(x_XD, torch.float32, torch.bfloat16):
        from archloop.blocks.ops.gpu.decay_gate import DecayGate

        g_XD: Tensor = apply(DecayGate, x_XD, bias_D, rate_D)
        return g_XD
    return -rate_D * F.softplus(x_XD.to(dtype) + bias_D)
