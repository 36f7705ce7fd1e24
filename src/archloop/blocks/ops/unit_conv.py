"""What the delta rule reads from its projections: convolved, through SiLU, of unit length.

Shape suffixes: B batch, T time, D channels of all heads, K kernel, L = K-1 past inputs, G key
heads, N value heads, H head width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.conv import causal_conv
from archloop.blocks.ops.heads import split_heads
from archloop.blocks.ops.precision import recurrent_dtype

LENGTH_EPS = 1e-6
"""Under the root when queries and keys are normalised, as in both papers' code."""
WIDEST_KERNEL = 256
"""Head width up to which one program holds a block of whole vectors."""


def unit(x: Tensor) -> Tensor:
    """Vectors (..., K) scaled to length 1, in at least float32."""
    x = x.to(recurrent_dtype(x.dtype))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def unit_conv(
    x_BTD: Tensor, weight_DK: Tensor, past_BLD: Tensor | None, key_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of length ``H^-1/2`` and keys of length 1 (B, G, T, H), and values (B, N, T, H).

    Queries and keys are at least float32, except on a GPU, where they are in the dtype of x.

    Args:
        x_BTD: queries, keys and values before the convolution, heads side by side.
        weight_DK: the convolution of each channel.
        past_BLD: inputs before the first; None for zeros.
        key_heads: heads of queries and of keys; all further channels are values.
        head_dim: width of every head.
    """
    keys = key_heads * head_dim
    value_heads = (x_BTD.shape[2] - 2 * keys) // head_dim
    kernel = triton_kernels.usable(x_BTD, torch.float32, torch.bfloat16)
    if kernel and head_dim <= WIDEST_KERNEL:
        from archloop.blocks.ops.gpu.unit_conv import UnitConv

        q, k, v = apply(UnitConv, x_BTD, weight_DK, past_BLD, key_heads, head_dim, LENGTH_EPS)
        return split_heads(q, key_heads), split_heads(k, key_heads), split_heads(v, value_heads)
    convolved_BTD = F.silu(causal_conv(x_BTD, weight_DK, past_BLD))
    q, k, v = convolved_BTD.split([keys, keys, x_BTD.shape[2] - 2 * keys], -1)
    q_BGTH, k_BGTH = (unit(split_heads(x, key_heads)) for x in (q, k))
    return q_BGTH * head_dim**-0.5, k_BGTH, split_heads(v, value_heads)
