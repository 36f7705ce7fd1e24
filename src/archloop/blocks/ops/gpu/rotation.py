"""Bias and rotation of Mamba-3's keys and queries on a GPU, one pass forward and one back.

``out[n] = rotate(x + bias[n], angle[n])`` for each head n of one shared vector; see
`mamba3.rotate`. Trigonometry is float32 whatever the dtype of x.

Imported only where Triton is installed. Shape suffixes: B batch, N heads, T time, R ranks, K state
width, S angles (pairs that turn).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T = 32


@triton.jit
def _partner(k, S: tl.constexpr):
    """Index of the other half of each pair, the sign of its sine, and which angle turns it."""
    first, second = k < S, (k >= S) & (k < 2 * S)
    other = tl.where(first, k + S, tl.where(second, k - S, k))
    sign = tl.where(first, -1.0, tl.where(second, 1.0, 0.0))
    return other, sign, tl.where(second, k - S, k), first | second


@any_length()
def _forward_kernel(
    x_ptr, bias_ptr, angle_ptr, out_ptr, num_steps, num_heads, num_ranks,
    K: tl.constexpr, KP: tl.constexpr, S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    k, t = tl.arange(0, KP), tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    row, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    other, sign, which, turns = _partner(k, S)
    mask = (t < num_steps)[:, None] & (k < K)[None, :]
    at = ((row.to(tl.int64) * num_heads + head) * num_steps + t)[:, None]
    angle = tl.load(angle_ptr + at * S + which[None, :], mask=mask & turns[None, :], other=0.0)
    for r in range(num_ranks):
        x_at = ((row.to(tl.int64) * num_steps + t)[:, None] * num_ranks + r) * K
        b_at = (head * num_ranks + r) * K
        x = tl.load(x_ptr + x_at + k[None, :], mask=mask, other=0.0).to(tl.float32)
        y = tl.load(x_ptr + x_at + other[None, :], mask=mask, other=0.0).to(tl.float32)
        x += tl.load(bias_ptr + b_at + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        y += tl.load(bias_ptr + b_at + other, mask=k < K, other=0.0).to(tl.float32)[None, :]
        out = x * tl.cos(angle) + sign[None, :] * y * tl.sin(angle)
        out_at = (at * num_ranks + r) * K + k[None, :]
        tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    out_ptr, angle_ptr, grad_ptr, dx_ptr, dbias_ptr, dangle_ptr,
    num_steps, num_heads, num_ranks,
    K: tl.constexpr, KP: tl.constexpr, SP: tl.constexpr, S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Sums over heads for x; a partial sum over time for the bias; dangle from (out, grad)."""
    k, s = tl.arange(0, KP), tl.arange(0, SP)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = tl.program_id(0) // num_ranks
    r = tl.program_id(0) % num_ranks
    other, sign, which, turns = _partner(k, S)
    mask = (t < num_steps)[:, None] & (k < K)[None, :]
    pairs = (t < num_steps)[:, None] & (s < S)[None, :]
    dx = tl.zeros([BLOCK_T, KP], dtype=tl.float32)
    part = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    for head in range(num_heads):
        at = ((row.to(tl.int64) * num_heads + head) * num_steps + t)[:, None]
        angle = tl.load(angle_ptr + at * S + which[None, :], mask=mask & turns[None, :], other=0.0)
        g_at = (at * num_ranks + r) * K
        g = tl.load(grad_ptr + g_at + k[None, :], mask=mask, other=0.0).to(tl.float32)
        h = tl.load(grad_ptr + g_at + other[None, :], mask=mask, other=0.0).to(tl.float32)
        # The inverse rotation: the sine with the opposite sign.
        back = g * tl.cos(angle) - sign[None, :] * h * tl.sin(angle)
        dx += back
        b_at = ((part * num_heads + head) * num_ranks + r) * K
        tl.store(dbias_ptr + b_at + k, tl.sum(back, 0), mask=k < K)
        # d out_first = -out_second d angle, d out_second = out_first d angle.
        g1 = tl.load(grad_ptr + g_at + s[None, :], mask=pairs, other=0.0).to(tl.float32)
        g2 = tl.load(grad_ptr + g_at + S + s[None, :], mask=pairs, other=0.0).to(tl.float32)
        o1 = tl.load(out_ptr + g_at + s[None, :], mask=pairs, other=0.0).to(tl.float32)
        o2 = tl.load(out_ptr + g_at + S + s[None, :], mask=pairs, other=0.0).to(tl.float32)
        tl.store(dangle_ptr + (at * num_ranks + r) * S + s[None, :], g2 * o1 - g1 * o2, mask=pairs)
    x_at = ((row.to(tl.int64) * num_steps + t)[:, None] * num_ranks + r) * K
    tl.store(dx_ptr + x_at + k[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)


class BiasedRotation(torch.autograd.Function):
    """x (B, T, R, K), bias (N, R, K) and angle (B, N, T, S) to (B, N, T, R, K)."""

    @staticmethod
    def forward(ctx: Any, x_BTRK: Tensor, bias_NRK: Tensor, angle_BNTS: Tensor) -> Tensor:
        """Each head's rotated vectors."""
        x_BTRK, bias_NRK = x_BTRK.contiguous(), bias_NRK.contiguous()
        angle_BNTS = angle_BNTS.contiguous()
        (batch, time, ranks, width), heads = x_BTRK.shape, bias_NRK.shape[0]
        out = torch.empty(
            batch, heads, time, ranks, width, dtype=x_BTRK.dtype, device=x_BTRK.device
        )
        _forward_kernel[(batch * heads, triton.cdiv(time, BLOCK_T))](
            x_BTRK, bias_NRK, angle_BNTS, out, time, heads, ranks,
            K=width, KP=triton.next_power_of_2(width), S=angle_BNTS.shape[-1], BLOCK_T=BLOCK_T,
        )  # fmt: skip
        ctx.save_for_backward(out, angle_BNTS)
        ctx.bias_dtype = bias_NRK.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of vectors, bias and angles."""
        out, angle_BNTS = ctx.saved_tensors
        batch, heads, time, ranks, width = out.shape
        angles, blocks = angle_BNTS.shape[-1], triton.cdiv(time, BLOCK_T)
        dx = torch.empty(batch, time, ranks, width, dtype=out.dtype, device=out.device)
        parts = angle_BNTS.new_empty(batch * blocks, heads, ranks, width)
        dangle = angle_BNTS.new_empty(batch, heads, time, ranks, angles)
        _backward_kernel[(batch * ranks, blocks)](
            out, angle_BNTS, grads[0].contiguous(), dx, parts, dangle, time, heads, ranks,
            K=width, KP=triton.next_power_of_2(width), SP=triton.next_power_of_2(angles),
            S=angles, BLOCK_T=BLOCK_T,
        )  # fmt: skip
        return dx, parts.sum(0).to(ctx.bias_dtype), dangle.sum(3)
