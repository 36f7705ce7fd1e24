"""Reshapes, rules and initial values that mixers with heads and a recurrent state share.

Shape suffixes: B batch, T time, N heads, H head width.
"""

import math

import torch
from torch import Tensor

from archloop.blocks.span import Span
from archloop.errors import UserError


def count_heads(width: int, head_dim: int, what: str) -> int:
    """How many heads of `head_dim` make up `width`, which the message calls `what`.

    Raises:
        UserError: not a whole number; names the divisors.
    """
    if width % head_dim:
        allowed = [size for size in range(1, width + 1) if width % size == 0]
        raise UserError(f"head_dim={head_dim} does not divide {what}; allowed: {allowed}")
    return width // head_dim


def whole_width(expansion: float, d_model: int) -> int:
    """Inner width ``expansion * d_model``.

    Raises:
        UserError: not a whole number of channels.
    """
    width = round(expansion * d_model)
    # 1.1 and 7/3 are not exact in binary, nor then is their product.
    if width < 1 or not math.isclose(width, expansion * d_model, rel_tol=1e-12):
        raise UserError(
            f"expansion={expansion} times d_model={d_model} is not whole; "
            "allowed: positive multiples of 1/d_model"
        )
    return width


def split_heads(x_BTd: Tensor, num_heads: int) -> Tensor:
    """(B, T, N H) as (B, N, T, H)."""
    batch, time, width = x_BTd.shape
    return x_BTd.reshape(batch, time, num_heads, width // num_heads).transpose(1, 2)


def join_heads(x_BNTH: Tensor) -> Tensor:
    """(B, N, T, H) as (B, T, N H)."""
    return x_BNTH.transpose(1, 2).flatten(2)


def only_real(x_BNTH: Tensor, span: Span) -> Tensor:
    """Zero at padding: a zero key or log-decay there leaves the state as it is."""
    valid_BT = span.valid_BT
    return x_BNTH if valid_BT is None else x_BNTH.where(valid_BT[:, None, :, None], 0)


def initial_dt_bias(num: int, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Inverse softplus of steps drawn log-uniformly between `low` and `high`."""
    dt = torch.empty(num).uniform_(math.log(low), math.log(high)).exp()
    return dt + torch.log(-torch.expm1(-dt))
