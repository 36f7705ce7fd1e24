"""`gated_norm` on a GPU: one pass over inputs, gates and outputs, forward and back.

All arithmetic is float32. Imported only where Triton is installed. Shape suffixes: as in
`ops.gated_norm`; R rows, all heads of all tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

TILE = 2048
"""Elements that a program holds of each tensor."""
PROGRAMS = 1056
"""Of the backward pass: each adds up the weight's gradient over many rows."""


@any_length()
def _forward_kernel(
    x_ptr, w_ptr, gate_ptr, y_ptr, num_rows, eps, SILU: tl.constexpr,
    V: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_V)
    at, mask = row[:, None] * V + c[None, :], (row < num_rows)[:, None] & (c < V)[None, :]
    w = tl.load(w_ptr + c, mask=c < V, other=0.0).to(tl.float32)[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.sigmoid(z)
    if SILU:
        gate *= z
    y = x * tl.rsqrt(tl.sum(x * x, 1) / V + eps)[:, None] * w * gate
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _backward_kernel(
    x_ptr, w_ptr, gate_ptr, dy_ptr, dx_ptr, dgate_ptr, dw_ptr, num_rows, eps, SILU: tl.constexpr,
    V: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Gradients; that of the weight is a partial sum, one a program."""
    c = tl.arange(0, BLOCK_V)
    w = tl.load(w_ptr + c, mask=c < V, other=0.0).to(tl.float32)[None, :]
    dw = tl.zeros([BLOCK_R, BLOCK_V], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_R), tl.num_programs(0)):
        row = block * BLOCK_R + tl.arange(0, BLOCK_R).to(tl.int64)
        at, mask = row[:, None] * V + c[None, :], (row < num_rows)[:, None] & (c < V)[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.sigmoid(z)
        if SILU:
            gate, slope = z * s, s * (1 + z * (1 - s))
        else:
            gate, slope = s, s * (1 - s)
        inverse = tl.rsqrt(tl.sum(x * x, 1) / V + eps)[:, None]
        unit = x * inverse
        dgate = dy * unit * w * slope
        tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
        dy *= gate
        dw += dy * unit
        dy *= w
        dx = inverse * (dy - unit * (tl.sum(dy * unit, 1) / V)[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dw_ptr + tl.program_id(0) * V + c, tl.sum(dw, 0), mask=c < V)


class GatedNorm(torch.autograd.Function):
    """`gated_norm.gated_norm` on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, x_XNV: Tensor, weight_V: Tensor, eps: float, gate_XNV: Tensor, activation: str
    ) -> Tensor:
        """Gated, normed values (X, N, V)."""
        x_XNV, gate_XNV, weight_V = (t.contiguous() for t in (x_XNV, gate_XNV, weight_V))
        y_XNV, (rows, constants) = torch.empty_like(x_XNV), _options(x_XNV, activation)
        _forward_kernel[(triton.cdiv(rows, constants["BLOCK_R"]),)](
            x_XNV, weight_V, gate_XNV, y_XNV, rows, eps, **constants
        )
        ctx.save_for_backward(x_XNV, weight_V, gate_XNV)
        ctx.settings = eps, activation
        return y_XNV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of values, weight and gate."""
        x_XNV, weight_V, gate_XNV = ctx.saved_tensors
        eps, activation = ctx.settings
        rows, constants = _options(x_XNV, activation)
        dx_XNV, dgate_XNV = torch.empty_like(x_XNV), torch.empty_like(gate_XNV)
        programs = min(PROGRAMS, triton.cdiv(rows, constants["BLOCK_R"]))
        parts = torch.empty(programs, len(weight_V), dtype=torch.float32, device=x_XNV.device)
        _backward_kernel[(programs,)](
            x_XNV, weight_V, gate_XNV, grads[0].contiguous(), dx_XNV, dgate_XNV, parts, rows, eps,
            **constants,
        )  # fmt: skip
        return dx_XNV, parts.sum(0).to(weight_V.dtype), None, dgate_XNV, None


def _options(x_XNV: Tensor, activation: str) -> tuple[int, dict[str, Any]]:
    """Number of rows, and a kernel's constants."""
    width = x_XNV.shape[-1]
    block = 1 << (width - 1).bit_length()
    sizes = {"V": width, "BLOCK_R": max(1, TILE // block), "BLOCK_V": block}
    return x_XNV.numel() // width, sizes | {"SILU": activation == "silu"}
