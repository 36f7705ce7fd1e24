"""The gate of SwiGLU: ``silu(gate) * up`` of gate and up side by side; one kernel on a GPU.

Shape suffixes: X leading dimensions, F twice the hidden width.
"""

from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply


def silu_gate(x_XF: Tensor) -> Tensor:
    """``silu`` of the first half of the last dimension times the second."""
    if triton_kernels.fusible(x_XF):
        from archloop.blocks.ops.gpu.silu_gate import SiluGate

        y: Tensor = apply(SiluGate, x_XF)
        return y
    gate, up = x_XF.chunk(2, -1)
    return F.silu(gate) * up
