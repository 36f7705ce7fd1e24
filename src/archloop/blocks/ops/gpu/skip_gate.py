"""`ops.skip_gate` on a GPU: one pass forward, one back.

All arithmetic is float32. Imported only where Triton is installed. Shape suffixes: as in
`ops.skip_gate`; R rows, all tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_R, BLOCK_D = 4, 512
PROGRAMS = 1056
"""Of the backward pass: each adds up the gradient of the skip over many rows."""


@any_length()
def _forward_kernel(
    y_ptr, x_ptr, skip_ptr, z_ptr, out_ptr, num_rows, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    at, mask = row[:, None] * D + d[None, :], (row < num_rows)[:, None] & (d < D)[None, :]
    skip = tl.load(skip_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    out = (y + skip * x) * z * tl.sigmoid(z)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    y_ptr, x_ptr, skip_ptr, z_ptr, dout_ptr, dy_ptr, dx_ptr, dz_ptr, dskip_ptr, num_rows,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients; that of the skip is a partial sum, one a program."""
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    skip = tl.load(skip_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    dskip = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        at, mask = row[:, None] * D + d[None, :], (row < num_rows)[:, None] & (d < D)[None, :]
        y = tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + at, mask=mask, other=0.0).to(tl.float32)
        open_ = tl.sigmoid(z)
        dy = dout * z * open_
        dz = dout * (y + skip * x) * open_ * (1 + z * (1 - open_))
        tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=mask)
        tl.store(dx_ptr + at, (dy * skip).to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        dskip += dy * x
    tl.store(dskip_ptr + tl.program_id(0) * D + d, tl.sum(dskip, 0), mask=d < D)


class SkipGate(torch.autograd.Function):
    """`ops.skip_gate.skip_gate` on a GPU."""

    @staticmethod
    def forward(ctx: Any, y_XD: Tensor, x_XD: Tensor, skip_D: Tensor, z_XD: Tensor) -> Tensor:
        """Gated values (X, D) in the dtype of the gate."""
        y_XD, x_XD, z_XD = y_XD.contiguous(), x_XD.contiguous(), z_XD.contiguous()
        out_XD, width = torch.empty_like(z_XD), z_XD.shape[-1]
        rows = z_XD.numel() // width
        _forward_kernel[(triton.cdiv(rows, BLOCK_R), triton.cdiv(width, BLOCK_D))](
            y_XD, x_XD, skip_D, z_XD, out_XD, rows, width, BLOCK_R, BLOCK_D
        )
        ctx.save_for_backward(y_XD, x_XD, skip_D, z_XD)
        return out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all four."""
        y_XD, x_XD, skip_D, z_XD = ctx.saved_tensors
        dy_XD, dx_XD, dz_XD = (torch.empty_like(t) for t in (y_XD, x_XD, z_XD))
        width = z_XD.shape[-1]
        rows = z_XD.numel() // width
        programs = min(PROGRAMS, triton.cdiv(rows, BLOCK_R))
        parts = torch.empty(programs, width, dtype=torch.float32, device=z_XD.device)
        _backward_kernel[(programs, triton.cdiv(width, BLOCK_D))](
            y_XD, x_XD, skip_D, z_XD, grads[0].contiguous(), dy_XD, dx_XD, dz_XD, parts, rows,
            width, BLOCK_R, BLOCK_D,
        )  # fmt: skip
        return dy_XD, dx_XD, parts.sum(0).to(skip_D.dtype), dz_XD
