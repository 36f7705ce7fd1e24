"""Heads beside time, and beside width: the two layouts of what a mixer with heads computes.

Shape suffixes: B batch, T time, N heads, H head width, d = N H.
"""

from torch import Tensor


def split_heads(x_BTd: Tensor, num_heads: int) -> Tensor:
    """(B, T, N H) as (B, N, T, H)."""
    batch, time, width = x_BTd.shape
    return x_BTd.reshape(batch, time, num_heads, width // num_heads).transpose(1, 2)


def join_heads(x_BNTH: Tensor) -> Tensor:
    """(B, N, T, H) as (B, T, N H)."""
    return x_BNTH.transpose(1, 2).flatten(2)
