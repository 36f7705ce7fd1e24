"""`decay_gate` on a GPU: one pass forward, one back. All arithmetic is float32.

Imported only where Triton is installed. Shape suffixes: as in `ops.decay_gate`; R rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_R, BLOCK_D = 32, 64
PARTS = 256
"""Programs along the rows of the backward pass; each adds up its vectors' gradients."""


@triton.jit
def exp(x):
    """``e^x`` for x <= 0. `tl.exp` rounds x / log 2 first, an error that grows with x: here that is
    a whole number and a small rest, with log 2 in two parts.
    """
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    return tl.exp2(n) * tl.exp(x - n * 0.693359375 + n * 2.12194440e-4)


@triton.jit
def log1p(u):
    """``log(1 + u)`` to the last digits: ``log(w) u / (w - 1)`` undoes the rounding of 1 + u."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, tl.log(w) * u / tl.where(w == 1.0, 1.0, w - 1.0))


@triton.jit
def softplus(z):
    """``log(1 + e^z)`` to the last digits."""
    return tl.maximum(z, 0.0) + log1p(exp(-tl.abs(z)))


@any_length()
def _forward_kernel(
    x_ptr, bias_ptr, rate_ptr, g_ptr, num_rows, num_channels, x_r,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < num_rows)[:, None] & (d < num_channels)[None, :]
    bias = tl.load(bias_ptr + d, mask=d < num_channels, other=0.0)[None, :]
    rate = tl.load(rate_ptr + d, mask=d < num_channels, other=0.0)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_r + d[None, :], mask=mask, other=0.0).to(tl.float32)
    at = row[:, None] * num_channels + d[None, :]
    tl.store(g_ptr + at, -rate * softplus(x + bias), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, bias_ptr, rate_ptr, dg_ptr, dx_ptr, dbias_ptr, drate_ptr, num_rows, num_channels, x_r,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients; those of the vectors are partial sums, one a program."""
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = d < num_channels
    bias = tl.load(bias_ptr + d, mask=d_in, other=0.0)[None, :]
    rate = tl.load(rate_ptr + d, mask=d_in, other=0.0)[None, :]
    dbias = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    drate = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        mask = (row < num_rows)[:, None] & d_in[None, :]
        z = tl.load(x_ptr + row[:, None] * x_r + d[None, :], mask=mask, other=0.0).to(tl.float32)
        z += bias
        at = row[:, None] * num_channels + d[None, :]
        dg = tl.load(dg_ptr + at, mask=mask, other=0.0)
        dz = -rate * tl.sigmoid(z) * dg
        tl.store(dx_ptr + at, dz.to(dx_ptr.dtype.element_ty), mask=mask)
        dbias += dz
        drate -= dg * softplus(z)
    out = tl.program_id(0) * num_channels + d
    tl.store(dbias_ptr + out, tl.sum(dbias, 0), mask=d_in)
    tl.store(drate_ptr + out, tl.sum(drate, 0), mask=d_in)


class DecayGate(torch.autograd.Function):
    """`decay_gate.decay_gate` on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, bias_D: Tensor, rate_D: Tensor) -> Tensor:
        """Log-decays (X, D), float32."""
        bias_D, rate_D = bias_D.contiguous(), rate_D.contiguous()
        x_RD = x_XD.reshape(-1, x_XD.shape[-1])
        x_RD = x_RD if x_RD.stride(1) == 1 else x_RD.contiguous()
        rows, channels = x_RD.shape
        g_XD = torch.empty(x_XD.shape, dtype=torch.float32, device=x_XD.device)
        _forward_kernel[triton.cdiv(rows, BLOCK_R), triton.cdiv(channels, BLOCK_D)](
            x_RD, bias_D, rate_D, g_XD, rows, channels, x_RD.stride(0),
            BLOCK_R=BLOCK_R, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        ctx.save_for_backward(x_RD, bias_D, rate_D)
        return g_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the projection, bias and rate."""
        x_RD, bias_D, rate_D = ctx.saved_tensors
        rows, channels = x_RD.shape
        parts = min(PARTS, triton.cdiv(rows, BLOCK_R))
        dx_RD = torch.empty(rows, channels, dtype=x_RD.dtype, device=x_RD.device)
        dbias, drate = bias_D.new_empty(2, parts, channels).unbind(0)
        _backward_kernel[parts, triton.cdiv(channels, BLOCK_D)](
            x_RD, bias_D, rate_D, grads[0].contiguous(), dx_RD, dbias, drate, rows, channels,
            x_RD.stride(0), BLOCK_R=BLOCK_R, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        return dx_RD.view(grads[0].shape), dbias.sum(0), drate.sum(0)
