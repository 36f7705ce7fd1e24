"""Heads of queries or keys: split, RMSNorm of each (QK-norm), RoPE; one kernel on a GPU.

Shape suffixes: B batch, T time, N heads, H head width, h half a head; d = N H.
"""

import torch
from torch import Tensor

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.heads import split_heads
from archloop.blocks.ops.norm import rms_norm
from archloop.blocks.ops.rope import Rope, frequencies, rotate

WIDEST_KERNEL = 512
"""Head width up to which one program holds whole heads of several tokens."""


def norm_rotate(
    x_BTd: Tensor,
    num_heads: int,
    weight_H: Tensor | None,
    eps: float,
    positions_BT: Tensor,
    theta: float | Rope | None,
) -> Tensor:
    """Heads (B, N, T, H) of x after norm and rotation.

    Args:
        x_BTd: heads side by side.
        num_heads: how many.
        weight_H: of the norm; None: no norm.
        eps: of the norm.
        positions_BT: place of each token.
        theta: RoPE, or its base; None: no rotation.
    """
    head_dim = x_BTd.shape[-1] // num_heads
    if head_dim <= WIDEST_KERNEL and triton_kernels.fusible(x_BTd):
        from archloop.blocks.ops.gpu.norm_rotate import NormRotate

        freq_h = None
        if theta is not None:
            freq_h = frequencies(head_dim // 2, theta, torch.float32, x_BTd.device)
        x_BNTH: Tensor = apply(NormRotate, x_BTd, num_heads, weight_H, eps, positions_BT, freq_h)
        return x_BNTH
    x_BNTH = split_heads(x_BTd, num_heads)
    if weight_H is not None:
        x_BNTH = rms_norm(x_BNTH, weight_H, eps).to(x_BNTH.dtype)
    return x_BNTH if theta is None else rotate(x_BNTH, positions_BT, theta)
