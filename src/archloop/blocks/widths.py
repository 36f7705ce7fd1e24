"""Widths that follow from the model's: refused, with what is allowed, where they are not whole."""

import math

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
    # A ratio such as 1.1 or 7/3 is not exact in binary, so its product with the width may fall just
    # beside the whole number that is meant.
    if width < 1 or not math.isclose(width, expansion * d_model, rel_tol=1e-12):
        raise UserError(
            f"expansion={expansion} times d_model={d_model} is not whole; "
            "allowed: positive multiples of 1/d_model"
        )
    return width


def scaled_heads(num_heads: int, d_model: int, new: int, group: int = 1) -> int:
    """Heads at width `new` in proportion to those at `d_model`, a multiple of `group` of them."""
    return max(1, round(num_heads * new / d_model / group)) * group
