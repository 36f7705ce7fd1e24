"""Rotary position embedding (arXiv 2104.09864) in the rotate-half layout that LFM2 uses.

Shape suffixes: B batch, N heads, T time, H head width, h half of it.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """How fast the pairs of a head turn.

    Attributes:
        theta: base; pair i turns by ``theta^(-2i/H)`` a position.
        fraction: share of the pairs that turn, those of the highest frequencies (LFM3).
        factor: positions are divided by this, so that longer texts stay in the trained range.
        trained_context: None: all pairs are slowed down. Otherwise (Llama 3.1) those with
            a wavelength above ``trained_context / low_freq_factor`` are, those below
            ``trained_context / high_freq_factor`` are not, and those between are in part.
        over: what a pair's frequency runs over, where not all turn: all of the head's pairs, as in
            LFM3, or those that turn, as in Qwen3-Next, whose slowest pairs so turn slower.
    """

    theta: float
    fraction: float = 1.0
    factor: float = 1.0
    trained_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    over: Literal["head", "turning"] = "head"

    def frequencies(self, half: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Angle by which each of a head's `half` pairs turns from one position to the next."""
        turning = turning_pairs(self.fraction, half)
        steps_h = torch.arange(half, device=device, dtype=dtype)
        exponents_h = steps_h / (half if self.over == "head" else turning)
        # Reciprocal of the power, not power of the negative: the rounding that checkpoints expect.
        freq_h = 1.0 / self.theta**exponents_h
        if self.factor != 1.0:
            freq_h = self._slowed(freq_h)
        if turning < half:
            freq_h = torch.cat([freq_h[:turning], torch.zeros_like(freq_h[turning:])])
        return freq_h

    def _slowed(self, freq_h: Tensor) -> Tensor:
        slow_h = freq_h / self.factor
        if self.trained_context is None:
            return slow_h
        wavelength_h = 2 * math.pi / freq_h
        low, high = self.low_freq_factor, self.high_freq_factor
        share_h = (self.trained_context / wavelength_h - low) / (high - low)
        between_h = (1 - share_h) * freq_h / self.factor + share_h * freq_h
        slowed_h = torch.where(wavelength_h > self.trained_context / low, slow_h, between_h)
        return torch.where(wavelength_h < self.trained_context / high, freq_h, slowed_h)


STILL = Rope(1.0, fraction=0.0)
"""Turns nothing."""


def turning_pairs(fraction: float, half: int) -> int:
    """How many of a head's `half` pairs turn.

    A share such as 1/49 is not exact in binary: the product may fall just below the whole number
    that is meant, and would be rounded down.
    """
    return int(fraction * half * (1 + 1e-12))


def rotate(x_BNTH: Tensor, positions_BT: Tensor, theta: float | Rope) -> Tensor:
    """Turn each pair (x_i, x_{i+H/2}) by position times its frequency (`Rope`, or its base).

    Angles are computed in at least float32: a bf16 position of 30,000 would be off by 100.
    """
    half = x_BNTH.shape[-1] // 2
    dtype = torch.promote_types(x_BNTH.dtype, torch.float32)
    freq_h = frequencies(half, theta, dtype, x_BNTH.device)
    angles_BTh = positions_BT[..., None].to(dtype) * freq_h
    cos_B1Th = angles_BTh.cos().to(x_BNTH.dtype)[:, None]
    sin_B1Th = angles_BTh.sin().to(x_BNTH.dtype)[:, None]
    a_BNTh, b_BNTh = x_BNTH.chunk(2, -1)
    return torch.cat(
        [a_BNTh * cos_B1Th - b_BNTh * sin_B1Th, b_BNTh * cos_B1Th + a_BNTh * sin_B1Th], -1
    )


def frequencies(half: int, theta: float | Rope, dtype: torch.dtype, device: torch.device) -> Tensor:
    """As `Rope.frequencies`."""
    rope = theta if isinstance(theta, Rope) else Rope(theta)
    return rope.frequencies(half, dtype, device)
