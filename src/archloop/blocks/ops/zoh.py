"""Discretisation of diagonal state spaces in real arithmetic, and where time steps start."""

import math

import torch
from torch import Tensor

from archloop.blocks.ops.scan import Pair

SLOWEST = 1e-15
"""Rate of decay whose square is still a float32."""


def zoh(real: Tensor, imag: Tensor, dt: Tensor) -> tuple[Pair, Pair]:
    """Zero-order hold of ``x' = l x + b u`` for poles l, elementwise and without cancellation.

    Returns:
        ``exp(l dt)`` and ``(exp(l dt) - 1) / l``, as pairs.
    """
    # What decays less than this lasts for good; 0 / 0 would be no number.
    real = real.clamp(max=-SLOWEST)
    grow, angle = real * dt, imag * dt
    a = (grow.exp() * angle.cos(), grow.exp() * angle.sin())
    # Re(exp(z) - 1) as a sum of two negative terms: exp(z).real - 1 would lose them for small dt,
    # and what the angle adds must vanish with exp(grow), in gradients too.
    num_r, num_i = torch.expm1(grow) - 2 * grow.exp() * (angle / 2).sin().square(), a[1]
    square = real.square() + imag.square()
    factor = (
        (num_r * real + num_i * imag) / square,
        (num_i * real - num_r * imag) / square,
    )
    return a, factor


def log_uniform(size: int, low: float, high: float) -> Tensor:
    """Logarithms drawn uniformly between those of `low` and `high`."""
    return torch.empty(size).uniform_(math.log(low), math.log(high))
