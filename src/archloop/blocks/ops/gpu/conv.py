"""Causal depthwise convolution on a GPU: one read of the inputs and one write, forward and back.

Followed, where asked, by a bias and silu: what went into silu is computed again on the way back.

Sums are float32 whatever the dtype. A row may hold more values than 32 bits count, so a program
finds its first token in 64 bits, and what stands around that token in 32. Imported only where
Triton is installed.

Shape suffixes: B batch, T time, D channels, K kernel, L = K-1 past inputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T, BLOCK_D = 16, 128
ROUNDS = 4
"""Blocks of time that a program of the backward pass goes through before it adds up."""


@triton.jit
def _convolved(
    x_ptr, w_ptr, past_ptr, bias_ptr, start, step, d, num_steps, num_channels, x_t,
    K: tl.constexpr, PAST: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Outputs before silu at the channels d of the tokens start + step of a row.

    `x_ptr` stands at the token `start`, `past_ptr` at the first input before the row.
    """
    d_in = d < num_channels
    t = start + step
    mask = (t < num_steps)[:, None] & d_in[None, :]
    y = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + d, mask=d_in, other=0.0).to(tl.float32)[None, :]
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d_in, other=0.0)
        x = tl.load(
            x_ptr + (step - back)[:, None] * x_t + d[None, :],
            mask=mask & (t >= back)[:, None],
            other=0.0,
        ).to(tl.float32)
        if PAST:
            x += tl.load(
                past_ptr + (K - 1 + t - back)[:, None] * num_channels + d[None, :],
                mask=mask & (t < back)[:, None],
                other=0.0,
            ).to(tl.float32)
        y += w.to(tl.float32)[None, :] * x
    return y


@any_length()
def _forward_kernel(
    x_ptr, w_ptr, past_ptr, bias_ptr, y_ptr, num_steps, num_channels, num_blocks, x_b, x_t,
    K: tl.constexpr, PAST: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    start, step = block * BLOCK_T, tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x_ptr += row * x_b + start.to(tl.int64) * x_t
    y = _convolved(
        x_ptr, w_ptr, past_ptr + row * (K - 1) * num_channels, bias_ptr, start, step, d,
        num_steps, num_channels, x_t, K, PAST, BIAS, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    if SILU:
        y *= tl.sigmoid(y)
    y_ptr += (row * num_steps + start) * num_channels
    mask = (start + step < num_steps)[:, None] & (d < num_channels)[None, :]
    at = step[:, None] * num_channels + d[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _through_silu_kernel(
    x_ptr, w_ptr, past_ptr, bias_ptr, dy_ptr, du_ptr, num_steps, num_channels, num_blocks,
    x_b, x_t, K: tl.constexpr, PAST: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of what went into silu."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    start, step = block * BLOCK_T, tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    x_ptr += row * x_b + start.to(tl.int64) * x_t
    u = _convolved(
        x_ptr, w_ptr, past_ptr + row * (K - 1) * num_channels, bias_ptr, start, step, d,
        num_steps, num_channels, x_t, K, PAST, BIAS, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    dy_ptr += (row * num_steps + start) * num_channels
    du_ptr += (row * num_steps + start) * num_channels
    mask = (start + step < num_steps)[:, None] & (d < num_channels)[None, :]
    at = step[:, None] * num_channels + d[None, :]
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.sigmoid(u)
    du = dy * gate * (1 + u * (1 - gate))
    tl.store(du_ptr + at, du.to(du_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, dbias_ptr, num_steps, num_channels, num_blocks,
    x_b, x_t, dx_b, dx_t, K: tl.constexpr, BIAS: tl.constexpr, ROUNDS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients, none of a past; those of weights and bias are partial sums, one a program."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    start = block * (ROUNDS * BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = d < num_channels
    x_ptr += row * x_b + start.to(tl.int64) * x_t
    dx_ptr += row * dx_b + start.to(tl.int64) * dx_t
    dy_ptr += (row * num_steps + start) * num_channels
    part = tl.program_id(0).to(tl.int64) * num_channels + d
    for back in tl.static_range(K):
        # One weight at a time: its products add up in registers over all rounds.
        dw = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for turn in range(ROUNDS):
            step = turn * BLOCK_T + tl.arange(0, BLOCK_T)
            t = start + step
            mask = (t < num_steps)[:, None] & d_in[None, :]
            dy = tl.load(dy_ptr + step[:, None] * num_channels + d[None, :], mask=mask, other=0.0)
            x = tl.load(
                x_ptr + (step - back)[:, None] * x_t + d[None, :],
                mask=mask & (t >= back)[:, None],
                other=0.0,
            )
            dw += x.to(tl.float32) * dy.to(tl.float32)
        tl.store(dw_ptr + part * K + (K - 1 - back), tl.sum(dw, 0), mask=d_in)
    dbias = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for turn in range(ROUNDS):
        step = turn * BLOCK_T + tl.arange(0, BLOCK_T)
        dx = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for back in tl.static_range(K):
            w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d_in, other=0.0).to(tl.float32)
            later = step + back
            dy = tl.load(
                dy_ptr + later[:, None] * num_channels + d[None, :],
                mask=(start + later < num_steps)[:, None] & d_in[None, :],
                other=0.0,
            ).to(tl.float32)
            if BIAS and back == 0:
                dbias += dy
            dx += w[None, :] * dy
        mask = (start + step < num_steps)[:, None] & d_in[None, :]
        dx_at = step[:, None] * dx_t + d[None, :]
        tl.store(dx_ptr + dx_at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if BIAS:
        tl.store(dbias_ptr + part, tl.sum(dbias, 0), mask=d_in)


class CausalConv(torch.autograd.Function):
    """`conv.causal_conv` or, with silu, `conv.activated_conv`; no gradient flows to the past."""

    @staticmethod
    def forward(
        ctx: Any, x_BTE: Tensor, weight_DK: Tensor, bias_D: Tensor | None, past_BLD: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Outputs (B, T, D), and the channels beyond the weights' as they are."""
        if x_BTE.stride(2) != 1:
            x_BTE = x_BTE.contiguous()
        weight_DK = weight_DK.contiguous()
        channels = weight_DK.shape[0]
        y_BTD = x_BTE.new_empty(*x_BTE.shape[:2], channels)
        past = x_BTE if past_BLD is None else past_BLD.contiguous()
        bias = weight_DK if bias_D is None else bias_D
        ctx.options = {
            "K": weight_DK.shape[1],
            "BIAS": bias_D is not None,
            "BLOCK_T": BLOCK_T,
            "BLOCK_D": BLOCK_D,
        }
        ctx.past, ctx.silu = past_BLD is not None, silu
        _forward_kernel[_grid(y_BTD)](
            x_BTE, weight_DK, past, bias, y_BTD, *_sizes(y_BTD), *x_BTE.stride()[:2],
            PAST=ctx.past, SILU=silu, **ctx.options,
        )  # fmt: skip
        if ctx.past and any(ctx.needs_input_grad):
            past = past.clone()  # the caller's is written in place before gradients are asked for
        ctx.save_for_backward(x_BTE, weight_DK, bias, past)
        return y_BTD, x_BTE[..., channels:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, weights and bias."""
        x_BTE, weight_DK, bias, past = ctx.saved_tensors
        channels, options = weight_DK.shape[0], ctx.options
        dy_BTD = grads[0].contiguous()
        if ctx.silu:
            du_BTD = torch.empty_like(dy_BTD)
            _through_silu_kernel[_grid(dy_BTD)](
                x_BTE, weight_DK, past, bias, dy_BTD, du_BTD, *_sizes(dy_BTD),
                *x_BTE.stride()[:2], PAST=ctx.past, **options,
            )  # fmt: skip
            dy_BTD = du_BTD
        dx_BTE = x_BTE.new_empty(x_BTE.shape)
        dx_BTE[..., channels:] = grads[1]
        grid = _grid(dy_BTD, ROUNDS)
        parts = weight_DK.new_empty(grid[0], *weight_DK.shape, dtype=torch.float32)
        bias_parts = torch.empty_like(parts[:, :, 0]) if options["BIAS"] else parts
        _backward_kernel[grid](
            x_BTE, weight_DK, dy_BTD, dx_BTE, parts, bias_parts, *_sizes(dy_BTD, ROUNDS),
            *x_BTE.stride()[:2], *dx_BTE.stride()[:2], ROUNDS=ROUNDS, **options,
        )  # fmt: skip
        dweight_DK = parts.sum(0)
        if ctx.past:
            dweight_DK += past_gradient(past, dy_BTD)
        dbias = bias_parts.sum(0).to(bias.dtype) if options["BIAS"] else None
        return dx_BTE, dweight_DK.to(weight_DK.dtype), dbias, None, None


def past_gradient(past_BLD: Tensor, dy_BTD: Tensor) -> Tensor:
    """What the inputs before the first add to the gradient of the weights, (D, K)."""
    _, length, channels = past_BLD.shape
    first = dy_BTD[:, :length].float()
    out_DK = first.new_zeros(channels, length + 1)
    for step in range(first.shape[1]):
        # The output at `step` reads the past from `step` on, through weights 0 to L - 1 - step.
        out_DK[:, : length - step] += torch.einsum(
            "bld,bd->dl", past_BLD[:, step:].float(), first[:, step]
        )
    return out_DK


def _grid(y_BTD: Tensor, rounds: int = 1) -> tuple[int, int]:
    batch, time, channels = y_BTD.shape
    return batch * triton.cdiv(time, BLOCK_T * rounds), triton.cdiv(channels, BLOCK_D)


def _sizes(y_BTD: Tensor, rounds: int = 1) -> tuple[int, int, int]:
    return y_BTD.shape[1], y_BTD.shape[2], triton.cdiv(y_BTD.shape[1], BLOCK_T * rounds)
