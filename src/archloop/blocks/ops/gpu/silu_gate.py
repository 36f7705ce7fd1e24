"""`ops.silu_gate` on a GPU: one pass forward, one back; nothing but the input is kept.

All arithmetic is float32. Imported only where Triton is installed. Shape suffixes: X rows, F hidden
width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_R, BLOCK_F = 4, 512
"""As measured on an H100: a row's part is long enough to be read in few transactions."""


@any_length()
def _forward_kernel(
    x_ptr, y_ptr, num_rows, F: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = (row < num_rows)[:, None] & (f < F)[None, :]
    at = row[:, None] * (2 * F) + f[None, :]
    gate = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + at + F, mask=mask, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + row[:, None] * F + f[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, dy_ptr, dx_ptr, num_rows, F: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_F: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = (row < num_rows)[:, None] & (f < F)[None, :]
    at = row[:, None] * (2 * F) + f[None, :]
    gate = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + at + F, mask=mask, other=0.0).to(tl.float32)
    dy_at = row[:, None] * F + f[None, :]
    dy = tl.load(dy_ptr + dy_at, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate = dy * up * s * (1 + gate * (1 - s))
    tl.store(dx_ptr + at, dgate.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + at + F, (dy * gate * s).to(dx_ptr.dtype.element_ty), mask=mask)


class SiluGate(torch.autograd.Function):
    """`ops.silu_gate.silu_gate` on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_XF: Tensor) -> Tensor:
        """Gated values, half as wide as x."""
        x_XF = x_XF.contiguous()
        hidden = x_XF.shape[-1] // 2
        y_XF = x_XF.new_empty(*x_XF.shape[:-1], hidden)
        rows = x_XF.numel() // (2 * hidden)
        _forward_kernel[_grid(rows, hidden)](x_XF, y_XF, rows, hidden, BLOCK_R, BLOCK_F)
        ctx.save_for_backward(x_XF)
        return y_XF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Gradient of gate and up, side by side."""
        (x_XF,) = ctx.saved_tensors
        dx_XF, hidden = torch.empty_like(x_XF), x_XF.shape[-1] // 2
        rows = x_XF.numel() // (2 * hidden)
        _backward_kernel[_grid(rows, hidden)](
            x_XF, grads[0].contiguous(), dx_XF, rows, hidden, BLOCK_R, BLOCK_F
        )
        return dx_XF


def _grid(rows: int, hidden: int) -> tuple[int, int]:
    return triton.cdiv(rows, BLOCK_R), triton.cdiv(hidden, BLOCK_F)
