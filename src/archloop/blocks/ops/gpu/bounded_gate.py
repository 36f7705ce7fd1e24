"""`bounded_gate` on a GPU: one pass forward, one back. All arithmetic is float32.

Imported only where Triton is installed. Shape suffixes: as in `ops.bounded_gate`; R rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.decay_gate import exp, log1p, softplus
from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_R, BLOCK_D = 16, 128


@triton.jit
def _tile(x_ptr, num_rows, num_channels, x_r, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The program's part of the projection, its place in dense tensors, and what of it there is."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None]
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    mask = (row < num_rows) & (d < num_channels)
    x = tl.load(x_ptr + row * x_r + d, mask=mask, other=0.0).to(tl.float32)
    return x, row * num_channels + d, mask


@triton.jit
def _sigmoids(x):
    """``sigmoid(x)`` and ``sigmoid(-x)``, neither of which loses digits where it is small."""
    u = exp(-tl.abs(x))
    large, small = 1.0 / (1.0 + u), u / (1.0 + u)
    return tl.where(x > 0, large, small), tl.where(x > 0, small, large)


@any_length()
def _forward_kernel(
    x_ptr, k_ptr, g_ptr, bound, num_rows, num_channels, x_r,
    BOUNDED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    x, at, mask = _tile(x_ptr, num_rows, num_channels, x_r, BLOCK_R, BLOCK_D)
    opened, shut = _sigmoids(x)
    k = (1.0 - bound) * shut
    g = -softplus(-x)
    if BOUNDED:
        f = bound + (1.0 - bound) * opened
        g = tl.where(f < 0.5, tl.log(f), log1p(-k))
    tl.store(k_ptr + at, k.to(k_ptr.dtype.element_ty), mask=mask)
    tl.store(g_ptr + at, g, mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, dk_ptr, dg_ptr, dx_ptr, bound, num_rows, num_channels, x_r,
    BOUNDED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    x, at, mask = _tile(x_ptr, num_rows, num_channels, x_r, BLOCK_R, BLOCK_D)
    dk = tl.load(dk_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dg = tl.load(dg_ptr + at, mask=mask, other=0.0)
    opened, shut = _sigmoids(x)
    moved = (1.0 - bound) * opened * shut
    dx = dg * shut
    if BOUNDED:
        dx = dg * moved / (bound + (1.0 - bound) * opened)
    tl.store(dx_ptr + at, (dx - dk * moved).to(dx_ptr.dtype.element_ty), mask=mask)


class BoundedGate(torch.autograd.Function):
    """`bounded_gate.bounded_gate` on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        """Keys in the dtype of x, log-decays in float32."""
        x_RD = x_XD.reshape(-1, x_XD.shape[-1])
        x_RD = x_RD if x_RD.stride(1) == 1 else x_RD.contiguous()
        k_XD = torch.empty(x_XD.shape, dtype=x_XD.dtype, device=x_XD.device)
        g_XD = torch.empty(x_XD.shape, dtype=torch.float32, device=x_XD.device)
        ctx.options = {"BOUNDED": bound > 0, "BLOCK_R": BLOCK_R, "BLOCK_D": BLOCK_D}
        ctx.bound = bound
        _forward_kernel[_grid(x_RD)](
            x_RD, k_XD, g_XD, bound, *x_RD.shape, x_RD.stride(0), **ctx.options
        )
        ctx.save_for_backward(x_RD)
        return k_XD, g_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dk_XD: Tensor, dg_XD: Tensor) -> tuple[Tensor, None]:
        """Gradient of the projection."""
        (x_RD,) = ctx.saved_tensors
        dx_XD = torch.empty(dk_XD.shape, dtype=x_RD.dtype, device=x_RD.device)
        _backward_kernel[_grid(x_RD)](
            x_RD, dk_XD.contiguous(), dg_XD.contiguous(), dx_XD, ctx.bound,
            *x_RD.shape, x_RD.stride(0), **ctx.options,
        )  # fmt: skip
        return dx_XD, None


def _grid(x_RD: Tensor) -> tuple[int, int]:
    rows, channels = x_RD.shape
    return triton.cdiv(rows, BLOCK_R), triton.cdiv(channels, BLOCK_D)
