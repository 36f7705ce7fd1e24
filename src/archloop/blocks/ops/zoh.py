"""Discretisation of diagonal state spaces in real arithmetic."""

import torch
from torch import Tensor

from archloop.blocks.ops.scan import Pair

SLOWEST = 1e-15
"""Smallest rate of decay: its square, by which the second result is divided, is still a float32."""


def zoh(real: Tensor, imag: Tensor, dt: Tensor) -> tuple[Pair, Pair]:
    """Zero-order hold of ``x' = l x + b u`` for poles l, elementwise and without cancellation.

    Returns:
        ``exp(l dt)`` and ``(exp(l dt) - 1) / l``, as pairs.
    """
    # A pole at 0 would give 0 / 0; one as slow as this forgets nothing of any length of text.
    real = real.clamp(max=-SLOWEST)
    grow, angle = real * dt, imag * dt
    a = (grow.exp() * angle.cos(), grow.exp() * angle.sin())
    # The real part of exp(z) - 1, for z = grow + i angle, as a sum of two terms of which neither is
    # positive: subtracting 1 from exp(z).real would round them away where dt is small. The term of
    # the angle is multiplied by exp(grow), so that it and its gradient vanish in a long step.
    num_r, num_i = torch.expm1(grow) - 2 * grow.exp() * (angle / 2).sin().square(), a[1]
    square = real.square() + imag.square()
    factor = (
        (num_r * real + num_i * imag) / square,
        (num_i * real - num_r * imag) / square,
    )
    return a, factor
