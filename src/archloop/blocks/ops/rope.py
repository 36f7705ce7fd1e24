"""Rotary position embedding (arXiv 2104.09864) in the rotate-half layout that LFM2 uses.

Shape suffixes: B batch, N heads, T time, H head width.
"""

import torch
from torch import Tensor


def rotate(x_BNTH: Tensor, positions_BT: Tensor, theta: float) -> Tensor:
    """Turn each pair (x_i, x_{i+H/2}) by ``position * theta^(-2i/H)``.

    Angles are computed in at least float32: a bf16 position of 30,000 would be off by 100.
    """
    half = x_BNTH.shape[-1] // 2
    dtype = torch.promote_types(x_BNTH.dtype, torch.float32)
    angles_BTh = positions_BT[..., None].to(dtype) * frequencies(half, theta, dtype, x_BNTH.device)
    cos_B1Th = angles_BTh.cos().to(x_BNTH.dtype)[:, None]
    sin_B1Th = angles_BTh.sin().to(x_BNTH.dtype)[:, None]
    a_BNTh, b_BNTh = x_BNTH.chunk(2, -1)
    return torch.cat(
        [a_BNTh * cos_B1Th - b_BNTh * sin_B1Th, b_BNTh * cos_B1Th + a_BNTh * sin_B1Th], -1
    )


def frequencies(half: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Angle by which each of a head's `half` pairs turns from one position to the next."""
    exponents = torch.arange(half, device=device, dtype=dtype) / half
    # Reciprocal of the power, not power of the negative: the rounding that checkpoints expect.
    return 1.0 / theta**exponents
