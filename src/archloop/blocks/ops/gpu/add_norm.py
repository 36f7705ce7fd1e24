"""`ops.norm` on a GPU: an addition to the residual stream and the norm that reads it, in one pass.

All arithmetic is float32. Imported only where Triton is installed. Shape suffixes: as in
`ops.norm`; R rows, all tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

TILE, NUM_WARPS = 2048, 2
"""Elements that a program holds of each tensor; both as measured on an H100 at widths 256, 512."""
PROGRAMS = 2112
"""Of the backward pass: each adds up the weight's gradient over many rows."""


@any_length()
def _forward_kernel(
    x_ptr, y_ptr, w_ptr, sum_ptr, out_ptr, num_rows, eps, ADD: tl.constexpr,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_D)
    at, mask = row[:, None] * D + c[None, :], (row < num_rows)[:, None] & (c < D)[None, :]
    w = tl.load(w_ptr + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        # The norm reads what the stream keeps, as its backward pass will.
        x = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, x, mask=mask)
        x = x.to(tl.float32)
    out = x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None] * w
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, w_ptr, dout_ptr, dsum_ptr, dx_ptr, dy_ptr, dw_ptr, num_rows, eps, CARRIED: tl.constexpr,
    TWICE: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of the stream; that of the weight is a partial sum, one a program."""
    c = tl.arange(0, BLOCK_D)
    w = tl.load(w_ptr + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        at, mask = row[:, None] * D + c[None, :], (row < num_rows)[:, None] & (c < D)[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + at, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        unit = x * inverse
        dw += dout * unit
        dout *= w
        dx = inverse * (dout - unit * (tl.sum(dout * unit, 1) / D)[:, None])
        if CARRIED:
            dx += tl.load(dsum_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if TWICE:
            tl.store(dy_ptr + at, dx.to(dy_ptr.dtype.element_ty), mask=mask)
    tl.store(dw_ptr + tl.program_id(0) * D + c, tl.sum(dw, 0), mask=c < D)


class Norm(torch.autograd.Function):
    """`ops.norm.rms_norm` on a GPU."""

    @staticmethod
    def forward(ctx: Any, x_XD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Normed values (X, D) in `dtype`."""
        x_XD = x_XD.contiguous()
        out_XD = torch.empty_like(x_XD, dtype=dtype)
        _launch_forward(x_XD, None, weight_D, x_XD, out_XD, eps)
        ctx.save_for_backward(x_XD, weight_D)
        ctx.eps = eps
        return out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values and weight."""
        x_XD, weight_D = ctx.saved_tensors
        dx_XD, _, dw_D = _launch_backward(x_XD, weight_D, grads[0], None, x_XD.dtype, ctx.eps)
        return dx_XD, dw_D, None, None


class AddNorm(torch.autograd.Function):
    """`ops.norm.add_norm` on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, x_XD: Tensor, y_XD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The stream (X, D) in its own dtype, and normed in `dtype`."""
        ctx.set_materialize_grads(False)
        x_XD, y_XD = x_XD.contiguous(), y_XD.contiguous()
        sum_XD, out_XD = torch.empty_like(x_XD), torch.empty_like(x_XD, dtype=dtype)
        _launch_forward(x_XD, y_XD, weight_D, sum_XD, out_XD, eps)
        ctx.save_for_backward(sum_XD, weight_D)
        ctx.eps, ctx.added = eps, y_XD.dtype
        return sum_XD, out_XD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of stream, addition and weight."""
        sum_XD, weight_D = ctx.saved_tensors
        dsum_XD, dout_XD = grads
        if dout_XD is None:
            given = None if dsum_XD is None else dsum_XD.to(ctx.added)
            return dsum_XD, given, None, None, None
        found = _launch_backward(sum_XD, weight_D, dout_XD, dsum_XD, ctx.added, ctx.eps)
        return *found, None, None


def _launch_forward(
    x_XD: Tensor, y_XD: Tensor | None, weight_D: Tensor, sum_XD: Tensor, out_XD: Tensor, eps: float
) -> None:
    rows, sizes = _sizes(x_XD)
    added = x_XD if y_XD is None else y_XD
    _forward_kernel[(triton.cdiv(rows, sizes["BLOCK_R"]),)](
        x_XD, added, weight_D, sum_XD, out_XD, rows, eps, ADD=y_XD is not None, **sizes,
        num_warps=NUM_WARPS,
    )  # fmt: skip


def _launch_backward(
    x_XD: Tensor,
    weight_D: Tensor,
    dout_XD: Tensor,
    dsum_XD: Tensor | None,
    added: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the stream, of an addition of dtype `added`, and of the weight."""
    rows, sizes = _sizes(x_XD)
    dout_XD = dout_XD.contiguous()
    dsum = dout_XD if dsum_XD is None else dsum_XD.contiguous()
    dx_XD = torch.empty_like(x_XD)
    dy_XD = dx_XD if added == x_XD.dtype else torch.empty_like(x_XD, dtype=added)
    programs = min(PROGRAMS, triton.cdiv(rows, sizes["BLOCK_R"]))
    parts = torch.empty(programs, len(weight_D), dtype=torch.float32, device=x_XD.device)
    _backward_kernel[(programs,)](
        x_XD, weight_D, dout_XD, dsum, dx_XD, dy_XD, parts, rows, eps,
        CARRIED=dsum_XD is not None, TWICE=dy_XD is not dx_XD, **sizes, num_warps=NUM_WARPS,
    )  # fmt: skip
    return dx_XD, dy_XD, parts.sum(0).to(weight_D.dtype)


def _sizes(x_XD: Tensor) -> tuple[int, dict[str, int]]:
    """Number of rows, and a kernel's constants."""
    width = x_XD.shape[-1]
    block = 1 << (width - 1).bit_length()
    return x_XD.numel() // width, {
        "D": width, "BLOCK_R": max(1, TILE // block), "BLOCK_D": block
    }  # fmt: skip
