"""`ops.gated_conv` on a GPU: gates and convolution in one pass forward and one back.

A program takes a tile of tokens and channels and reads the few tokens around it again, which the
cache holds. Its first token it finds in 64 bits, as in `gpu.conv`. Sums are float32. Imported only
where Triton is installed. Shape suffixes: B batch, T time, D channels, K kernel; E = 3D, the gate
b, the gate c and the input u side by side.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T, BLOCK_D = 16, 128
BACKWARD_WARPS = 2
"""All three as measured on an H100 at widths 256 and 512."""


@triton.jit
def _gated(x_ptr, step, d, mask, D: tl.constexpr):
    """``b * u`` at the tokens `step` behind that of `x_ptr`, in float32; 0 outside the mask."""
    at = step[:, None] * (3 * D) + d[None, :]
    b = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return b * tl.load(x_ptr + at + 2 * D, mask=mask, other=0.0).to(tl.float32)


@any_length()
def _forward_kernel(
    x_ptr, w_ptr, y_ptr, num_steps, num_blocks, D: tl.constexpr, K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    step = tl.arange(0, BLOCK_T)
    t = block * BLOCK_T + step
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = row * num_steps + block * BLOCK_T
    x_ptr += first * (3 * D)
    y_ptr += first * D
    mask = (t < num_steps)[:, None] & (d < D)[None, :]
    mixed = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < D, other=0.0).to(tl.float32)
        mixed += w[None, :] * _gated(x_ptr, step - back, d, mask & (t >= back)[:, None], D)
    c = tl.load(x_ptr + step[:, None] * (3 * D) + D + d[None, :], mask=mask, other=0.0)
    y = c.to(tl.float32) * mixed
    tl.store(y_ptr + step[:, None] * D + d[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, w_ptr, dy_ptr, dx_ptr, dw_ptr, num_steps, num_blocks, D: tl.constexpr, K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of b, c and u; that of the weights is a partial sum, one a tile."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    step = tl.arange(0, BLOCK_T)
    t = block * BLOCK_T + step
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = row * num_steps + block * BLOCK_T
    x_ptr += first * (3 * D)
    dx_ptr += first * (3 * D)
    dy_ptr += first * D
    mask = (t < num_steps)[:, None] & (d < D)[None, :]
    at = step[:, None] * (3 * D) + d[None, :]
    dy = tl.load(dy_ptr + step[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    dmixed = dy * tl.load(x_ptr + at + D, mask=mask, other=0.0).to(tl.float32)
    mixed = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    dgated = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    part = (tl.program_id(0).to(tl.int64) * D + d) * K
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < D, other=0.0).to(tl.float32)
        z = _gated(x_ptr, step - back, d, mask & (t >= back)[:, None], D)
        mixed += w[None, :] * z
        tl.store(dw_ptr + part + (K - 1 - back), tl.sum(dmixed * z, 0), mask=d < D)
        after = step + back
        inside = (t + back < num_steps)[:, None] & (d < D)[None, :]
        later = tl.load(dy_ptr + after[:, None] * D + d[None, :], mask=inside, other=0.0)
        c = tl.load(x_ptr + after[:, None] * (3 * D) + D + d[None, :], mask=inside, other=0.0)
        dgated += w[None, :] * later.to(tl.float32) * c.to(tl.float32)
    b = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(x_ptr + at + 2 * D, mask=mask, other=0.0).to(tl.float32)
    dtype = dx_ptr.dtype.element_ty
    tl.store(dx_ptr + at, (dgated * u).to(dtype), mask=mask)
    tl.store(dx_ptr + at + D, (dy * mixed).to(dtype), mask=mask)
    tl.store(dx_ptr + at + 2 * D, (dgated * b).to(dtype), mask=mask)


class GatedConv(torch.autograd.Function):
    """`ops.gated_conv.gated_conv` on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_BTE: Tensor, weight_DK: Tensor) -> Tensor:
        """Outputs (B, T, D)."""
        x_BTE, weight_DK = x_BTE.contiguous(), weight_DK.contiguous()
        (batch, time, _), (width, kernel) = x_BTE.shape, weight_DK.shape
        y_BTD = x_BTE.new_empty(batch, time, width)
        grid, blocks = _grid(batch, time, width)
        _forward_kernel[grid](
            x_BTE, weight_DK, y_BTD, time, blocks, width, kernel, BLOCK_T, BLOCK_D
        )
        ctx.save_for_backward(x_BTE, weight_DK)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of inputs and weights."""
        x_BTE, weight_DK = ctx.saved_tensors
        (batch, time, _), (width, kernel) = x_BTE.shape, weight_DK.shape
        grid, blocks = _grid(batch, time, width)
        dx_BTE = torch.empty_like(x_BTE)
        parts = weight_DK.new_empty(grid[0], width, kernel, dtype=torch.float32)
        _backward_kernel[grid](
            x_BTE, weight_DK, grads[0].contiguous(), dx_BTE, parts, time, blocks, width, kernel,
            BLOCK_T, BLOCK_D, num_warps=BACKWARD_WARPS,
        )  # fmt: skip
        return dx_BTE, parts.sum(0).to(weight_DK.dtype)


def _grid(batch: int, time: int, width: int) -> tuple[tuple[int, int], int]:
    blocks = triton.cdiv(time, BLOCK_T)
    return (batch * blocks, triton.cdiv(width, BLOCK_D)), blocks
