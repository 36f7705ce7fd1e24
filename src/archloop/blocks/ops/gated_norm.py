"""RMSNorm of each head (arXiv 1910.07467), then a gate: one kernel on a GPU.

Shape suffixes: X leading dimensions, N heads, V head width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply

Activation = Literal["silu", "sigmoid"]
WIDEST_KERNEL = 1024
"""Head width up to which one program holds several vectors."""


def gated_norm(
    x_XNV: Tensor, weight_V: Tensor, eps: float, gate_XNV: Tensor, activation: Activation
) -> Tensor:
    """``w * x / sqrt(mean(x^2) + eps) * activation(gate)``, the mean taken over each head.

    Args:
        x_XNV: what is normalised.
        weight_V: scale of each channel of a head.
        eps: under the root.
        gate_XNV: the gate before its activation.
        activation: of the gate.
    """
    kernel = triton_kernels.usable(x_XNV, torch.float32, torch.bfloat16)
    if kernel and x_XNV.dtype == gate_XNV.dtype and x_XNV.shape[-1] <= WIDEST_KERNEL:
        from archloop.blocks.ops.gpu.gated_norm import GatedNorm

        y_XNV: Tensor = apply(GatedNorm, x_XNV, weight_V, eps, gate_XNV, activation)
        return y_XNV
    gate_XNV = F.silu(gate_XNV) if activation == "silu" else torch.sigmoid(gate_XNV)
    return F.rms_norm(x_XNV, weight_V.shape, weight_V, eps) * gate_XNV
