"""Causal depthwise convolution on a GPU: one read of the inputs and one write, forward and back.

Sums are float32 whatever the dtype. Imported only where Triton is installed.

Shape suffixes: B batch, T time, D channels, K kernel, L = K-1 past inputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.triton_kernels import jit

BLOCK_T, BLOCK_D = 32, 64


@jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, past_ptr, y_ptr, num_steps, num_channels, num_blocks,
    x_b, x_t, K: tl.constexpr, PAST: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = (d < num_channels)[None, :]
    mask = (t < num_steps)[:, None] & d_in
    y = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < num_channels, other=0.0)
        at = t - back
        x = tl.load(
            x_ptr + row * x_b + at[:, None].to(tl.int64) * x_t + d[None, :],
            mask=mask & (at >= 0)[:, None],
            other=0.0,
        ).to(tl.float32)
        if PAST:
            held = row * (K - 1) + (K - 1 + at)[:, None]
            x += tl.load(
                past_ptr + held * num_channels + d[None, :],
                mask=mask & (at < 0)[:, None],
                other=0.0,
            ).to(tl.float32)
        y += w.to(tl.float32)[None, :] * x
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, num_steps, num_channels, num_blocks,
    x_b, x_t, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients without a past; that of the weights is a partial sum, one a program."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = (d < num_channels)[None, :]
    mask = (t < num_steps)[:, None] & d_in
    x = tl.load(
        x_ptr + row * x_b + t[:, None].to(tl.int64) * x_t + d[None, :], mask=mask, other=0.0
    ).to(tl.float32)
    dx = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < num_channels, other=0.0)
        later = t + back
        dy = tl.load(
            dy_ptr + (row * num_steps + later[:, None]) * num_channels + d[None, :],
            mask=(later < num_steps)[:, None] & d_in,
            other=0.0,
        ).to(tl.float32)
        dx += w.to(tl.float32)[None, :] * dy
        part = (tl.program_id(0).to(tl.int64) * num_channels + d) * K + (K - 1 - back)
        tl.store(dw_ptr + part, tl.sum(x * dy, 0), mask=d < num_channels)
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class CausalConv(torch.autograd.Function):
    """`conv.causal_conv` on a GPU, without segments; no gradient flows to the past."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_DK: Tensor, past_BLD: Tensor | None) -> Tensor:
        """Outputs (B, T, D)."""
        if x_BTD.stride(2) != 1:
            x_BTD = x_BTD.contiguous()
        weight_DK = weight_DK.contiguous()
        y_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        past = x_BTD if past_BLD is None else past_BLD.contiguous()
        _forward_kernel[_grid(x_BTD)](
            x_BTD, weight_DK, past, y_BTD, *_sizes(x_BTD), *x_BTD.stride()[:2],
            K=weight_DK.shape[1], PAST=past_BLD is not None, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        ctx.save_for_backward(x_BTD, weight_DK)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of inputs and weights."""
        x_BTD, weight_DK = ctx.saved_tensors
        dy_BTD, grid = grads[0].contiguous(), _grid(x_BTD)
        dx_BTD = torch.empty_like(dy_BTD)
        parts = torch.empty(grid[0], *weight_DK.shape, dtype=torch.float32, device=x_BTD.device)
        _backward_kernel[grid](
            x_BTD, weight_DK, dy_BTD, dx_BTD, parts, *_sizes(x_BTD), *x_BTD.stride()[:2],
            K=weight_DK.shape[1], BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D,
        )  # fmt: skip
        return dx_BTD, parts.sum(0).to(weight_DK.dtype), None


def _grid(x_BTD: Tensor) -> tuple[int, int]:
    batch, time, channels = x_BTD.shape
    return batch * triton.cdiv(time, BLOCK_T), triton.cdiv(channels, BLOCK_D)


def _sizes(x_BTD: Tensor) -> tuple[int, int, int]:
    return x_BTD.shape[1], x_BTD.shape[2], triton.cdiv(x_BTD.shape[1], BLOCK_T)
