"""Mamba-2's way out: skip, gate and a norm over each group of heads; one pass on a GPU.

Shape suffixes: X leading dimensions, N heads, I inner width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply

WIDEST_ROW = 4096
"""Values normalised together that fit a program."""


def skip_gate_norm(
    o_XI: Tensor,
    x_XI: Tensor,
    skip_N: Tensor,
    gate_XI: Tensor,
    weight_I: Tensor,
    num_groups: int,
    eps: float,
) -> Tensor:
    """``w RMSNorm((o + skip x) * silu(gate))``, the mean square taken over each group.

    Args:
        o_XI: outputs of the recurrence.
        x_XI: its inputs.
        skip_N: each head's factor on these.
        gate_XI: the gate before its activation; its dtype is that of the result.
        weight_I: scale of each channel.
        num_groups: parts normalised on their own.
        eps: under the root.
    """
    inner = o_XI.shape[-1]
    if o_XI.dim() == 3 and inner // num_groups <= WIDEST_ROW and _served(o_XI, x_XI, gate_XI):
        from archloop.blocks.ops.gpu.skip_gate_norm import SkipGateNorm

        y_XI: Tensor = apply(SkipGateNorm, o_XI, x_XI, skip_N, gate_XI, weight_I, num_groups, eps)
        return y_XI
    skipped_XI = o_XI + x_XI * skip_N.repeat_interleave(inner // skip_N.shape[0])
    gated = (skipped_XI.to(gate_XI.dtype) * F.silu(gate_XI)).unflatten(-1, (num_groups, -1))
    return F.rms_norm(gated, gated.shape[-1:], None, eps).flatten(-2) * weight_I


def _served(*tensors: Tensor) -> bool:
    dtypes = torch.float32, torch.bfloat16
    return all(triton_kernels.usable(x, *dtypes) for x in tensors)
