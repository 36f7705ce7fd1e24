"""`ops.skip_gate_norm` on a GPU. A program takes a few tokens and one group of heads.

Sums are float32. Imported only where Triton is installed. Shape suffixes: B batch, T time, N heads,
I inner width; W values normalised together, V head width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

TILE = 2048
"""Values a program holds of each tensor."""
ROUNDS = 8
"""Tiles that a backward program goes through, so that partial sums stay few."""


@any_length()
def _forward_kernel(
    o_ptr, x_ptr, skip_ptr, gate_ptr, weight_ptr, y_ptr, num_tokens, o_t, x_t, gate_t, y_t, eps,
    V: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    inside = tl.arange(0, BLOCK_W)
    mask = (t < num_tokens) & (inside < W)[None, :]
    channel = tl.program_id(1) * W + inside
    at = channel[None, :]
    o = tl.load(o_ptr + t * o_t + at, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + t * x_t + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + t * gate_t + at, mask=mask, other=0.0).to(tl.float32)
    skip = tl.load(skip_ptr + channel // V, mask=inside < W, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=inside < W, other=0.0).to(tl.float32)
    gated = (o + skip[None, :] * x) * gate * tl.sigmoid(gate)
    scale = tl.rsqrt(tl.sum(gated * gated, 1) / W + eps)
    y = gated * scale[:, None] * weight[None, :]
    tl.store(y_ptr + t * y_t + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    o_ptr, x_ptr, skip_ptr, gate_ptr, weight_ptr, dy_ptr, do_ptr, dx_ptr, dgate_ptr, dskip_ptr,
    dweight_ptr, num_tokens, num_channels, o_t, x_t, gate_t, y_t, eps,
    V: tl.constexpr, W: tl.constexpr, ROUNDS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradients; those of skip and weight are partial sums, one a program and channel."""
    inside = tl.arange(0, BLOCK_W)
    channel = tl.program_id(1) * W + inside
    at = channel[None, :]
    skip = tl.load(skip_ptr + channel // V, mask=inside < W, other=0.0).to(tl.float32)[None, :]
    weight = tl.load(weight_ptr + channel, mask=inside < W, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros([BLOCK_W], dtype=tl.float32)
    dskip = tl.zeros([BLOCK_W], dtype=tl.float32)
    for turn in range(ROUNDS):
        t = (tl.program_id(0).to(tl.int64) * ROUNDS + turn) * BLOCK_T
        t += tl.arange(0, BLOCK_T)[:, None]
        mask = (t < num_tokens) & (inside < W)[None, :]
        o = tl.load(o_ptr + t * o_t + at, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + t * x_t + at, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + t * gate_t + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + t * y_t + at, mask=mask, other=0.0).to(tl.float32)
        open_ = tl.sigmoid(gate)
        skipped = o + skip * x
        gated = skipped * gate * open_
        scale = tl.rsqrt(tl.sum(gated * gated, 1) / W + eps)[:, None]
        normed = gated * scale
        dweight += tl.sum(dy * normed, 0)
        dnormed = dy * weight
        dgated = scale * (dnormed - normed * (tl.sum(dnormed * normed, 1) / W)[:, None])
        dgate = dgated * skipped * open_ * (1 + gate * (1 - open_))
        do = dgated * gate * open_
        dskip += tl.sum(do * x, 0)
        tl.store(do_ptr + t * y_t + at, do.to(do_ptr.dtype.element_ty), mask=mask)
        tl.store(dx_ptr + t * y_t + at, (do * skip).to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dgate_ptr + t * y_t + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
    part = tl.program_id(0).to(tl.int64) * num_channels + channel
    tl.store(dweight_ptr + part, dweight, mask=inside < W)
    tl.store(dskip_ptr + part, dskip, mask=inside < W)


class SkipGateNorm(torch.autograd.Function):
    """`skip_gate_norm.skip_gate_norm` on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, o_BTI: Tensor, x_BTI: Tensor, skip_N: Tensor, gate_BTI: Tensor,
        weight_I: Tensor, num_groups: int, eps: float,
    ) -> Tensor:  # fmt: skip
        """Outputs (B, T, I) in the dtype of the gate."""
        o_BTI, x_BTI, gate_BTI = _rows(o_BTI), _rows(x_BTI), _rows(gate_BTI)
        y_BTI, (batch, time, inner) = gate_BTI.new_empty(gate_BTI.shape), o_BTI.shape
        width = inner // num_groups
        block_w = 1 << (width - 1).bit_length()
        block_t = max(TILE // block_w, 1)
        ctx.options = {
            "V": inner // skip_N.shape[0],
            "W": width,
            "BLOCK_T": block_t,
            "BLOCK_W": block_w,
        }
        ctx.grid = triton.cdiv(batch * time, block_t), num_groups
        ctx.eps = eps
        _forward_kernel[ctx.grid](
            o_BTI, x_BTI, skip_N, gate_BTI, weight_I, y_BTI, batch * time,
            *(x.stride(1) for x in (o_BTI, x_BTI, gate_BTI, y_BTI)), eps, **ctx.options,
        )  # fmt: skip
        ctx.save_for_backward(o_BTI, x_BTI, skip_N, gate_BTI, weight_I)
        return y_BTI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of outputs, inputs, skip, gate and weight."""
        o_BTI, x_BTI, skip_N, gate_BTI, weight_I = ctx.saved_tensors
        dy_BTI, (batch, time, inner) = grads[0].contiguous(), o_BTI.shape
        do_BTI, dx_BTI = (dy_BTI.new_empty(dy_BTI.shape, dtype=x.dtype) for x in (o_BTI, x_BTI))
        dgate_BTI = torch.empty_like(dy_BTI)
        grid = triton.cdiv(ctx.grid[0], ROUNDS), ctx.grid[1]
        parts = weight_I.new_empty(2, grid[0], inner, dtype=torch.float32)
        _backward_kernel[grid](
            o_BTI, x_BTI, skip_N, gate_BTI, weight_I, dy_BTI, do_BTI, dx_BTI, dgate_BTI,
            parts[0], parts[1], batch * time, inner,
            *(x.stride(1) for x in (o_BTI, x_BTI, gate_BTI, dy_BTI)), ctx.eps,
            ROUNDS=ROUNDS, **ctx.options,
        )  # fmt: skip
        dskip_I, dweight_I = parts.sum(1)
        dskip_N = dskip_I.unflatten(0, (skip_N.shape[0], -1)).sum(1).to(skip_N.dtype)
        return do_BTI, dx_BTI, dskip_N, dgate_BTI, dweight_I.to(weight_I.dtype), None, None


def _rows(x_BTI: Tensor) -> Tensor:
    """`x` as rows of contiguous values, each token the same step after the one before."""
    batch, time, _ = x_BTI.shape
    even = batch == 1 or x_BTI.stride(0) == time * x_BTI.stride(1)
    return x_BTI if even and x_BTI.stride(2) == 1 else x_BTI.contiguous()
