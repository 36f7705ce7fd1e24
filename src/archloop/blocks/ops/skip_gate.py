"""A skip connection, then a gate: ``(y + skip x) silu(z)``; one kernel on a GPU.

Shape suffixes: X leading dimensions, D channels.
"""

from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply


def skip_gate(y_XD: Tensor, x_XD: Tensor, skip_D: Tensor, z_XD: Tensor) -> Tensor:
    """``(y + skip x) silu(z)``.

    Args:
        y_XD: what a recurrence gave.
        x_XD: what went into it.
        skip_D: weight of the skip connection.
        z_XD: the gate before its activation.
    """
    if all(triton_kernels.fusible(t) for t in (y_XD, x_XD, z_XD)):
        from archloop.blocks.ops.gpu.skip_gate import SkipGate

        out_XD: Tensor = apply(SkipGate, y_XD, x_XD, skip_D, z_XD)
        return out_XD
    return (y_XD + skip_D * x_XD) * F.silu(z_XD)
