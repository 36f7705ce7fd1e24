"""The selective scan on a GPU: chunks of time in parallel, their states carried in between.

Forward: (1) each chunk's decay and what it adds to the state, in closed form from the cumulative
time step; (2) one small scan over chunks gives the state before each; (3) each chunk's states by an
associative scan, read out at once. Backward runs the mirror image and computes the states again, so
that memory holds one state a chunk instead of one a token. A program handles a tile of time by
channels and goes through the N states in turn. All arithmetic is float32.

Imported only where Triton is installed. Shape suffixes: B batch, T time, D channels, N states per
channel, K chunks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.chunks import shifted
from archloop.blocks.ops.gpu.lengths import any_length
from archloop.blocks.ops.gpu.scan import compose, launch

BLOCK_T, BLOCK_D, NUM_WARPS = 32, 16, 1


@any_length()
def _summary_kernel(
    x_ptr, dt_ptr, a_ptr, w_ptr, decay_ptr, sum_ptr, num_steps, num_channels, num_chunks,
    N: tl.constexpr, ADJOINT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Per chunk and state: the decay, and the sum of what its tokens add to the state after it
    (x = input, w = B) or, as the adjoint, to the gradient of the state before it (x = dy, w = C).
    """
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    t = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    t_in, d_in = t < num_steps, d < num_channels
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    mask = t_in[:, None] & d_in[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + at, mask=mask, other=0.0)
    since = tl.cumsum(dt, 0)
    total = tl.sum(dt, 0)
    if ADJOINT:
        span, push = since, x
    else:
        span, push = total[None, :] - since, dt * x
    out = (tl.program_id(0).to(tl.int64) * num_channels + d) * N
    for n in range(N):
        a = tl.load(a_ptr + d * N + n, mask=d_in, other=0.0)
        w = tl.load(w_ptr + (row * num_steps + t) * N + n, mask=t_in, other=0.0).to(tl.float32)
        added = tl.sum(tl.exp(a[None, :] * span) * push * w[:, None], 0)
        tl.store(sum_ptr + out + n, added, mask=d_in)
        tl.store(decay_ptr + out + n, tl.exp(a * total), mask=d_in)


@any_length()
def _output_kernel(
    x_ptr, dt_ptr, a_ptr, b_ptr, c_ptr, start_ptr, y_ptr, num_steps, num_channels, num_chunks,
    N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    t = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    t_in, d_in = t < num_steps, d < num_channels
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    mask = t_in[:, None] & d_in[None, :]
    dt = tl.load(dt_ptr + at, mask=mask, other=0.0)
    push = dt * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    held = (tl.program_id(0).to(tl.int64) * num_channels + d) * N
    y = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for n in range(N):
        a = tl.load(a_ptr + d * N + n, mask=d_in, other=0.0)
        start = tl.load(start_ptr + held + n, mask=d_in, other=0.0)
        w = (row * num_steps + t) * N + n
        b = tl.load(b_ptr + w, mask=t_in, other=0.0).to(tl.float32)
        c = tl.load(c_ptr + w, mask=t_in, other=0.0).to(tl.float32)
        decay = tl.exp(a[None, :] * dt)
        p, h = tl.associative_scan((decay, push * b[:, None]), 0, compose)
        y += (h + p * start[None, :]) * c[:, None]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@any_length()
def _gradient_kernel(
    x_ptr, dt_ptr, a_ptr, b_ptr, c_ptr, start_ptr, dy_ptr, end_ptr,
    dx_ptr, ddt_ptr, da_ptr, db_ptr, dc_ptr, num_steps, num_channels, num_chunks,
    N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients of one tile; those of A, B and C are partial sums, one a program."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    step = tl.arange(0, BLOCK_T)
    t = chunk * BLOCK_T + step
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    t_in, d_in = t < num_steps, d < num_channels
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    mask = t_in[:, None] & d_in[None, :]
    # The decay from a token to the next; the last token's stands in the gradient at the end.
    follows = mask & ((step < BLOCK_T - 1) & (t + 1 < num_steps))[:, None]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + at, mask=mask, other=0.0)
    next_dt = tl.load(dt_ptr + at + num_channels, mask=follows, other=0.0)
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
    held = (tl.program_id(0).to(tl.int64) * num_channels + d) * N
    num_rows = tl.num_programs(0).to(tl.int64) // num_chunks
    part = (tl.program_id(1) * num_rows + row) * num_steps
    dx = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    ddt = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for n in range(N):
        a = tl.load(a_ptr + d * N + n, mask=d_in, other=0.0)
        start = tl.load(start_ptr + held + n, mask=d_in, other=0.0)
        end = tl.load(end_ptr + held + n, mask=d_in, other=0.0)
        w = (row * num_steps + t) * N + n
        b = tl.load(b_ptr + w, mask=t_in, other=0.0).to(tl.float32)
        c = tl.load(c_ptr + w, mask=t_in, other=0.0).to(tl.float32)
        xb = x * b[:, None]
        p, h = tl.associative_scan((tl.exp(a[None, :] * dt), dt * xb), 0, compose)
        h += p * start[None, :]
        next_decay = tl.exp(a[None, :] * next_dt)
        p, g = tl.associative_scan((next_decay, dy * c[:, None]), 0, compose, reverse=True)
        g += p * end[None, :]
        kept = h - dt * xb
        dx += g * dt * b[:, None]
        ddt += g * (xb + a[None, :] * kept)
        tl.store(da_ptr + held + n, tl.sum(g * dt * kept, 0), mask=d_in)
        tl.store(db_ptr + (part + t) * N + n, tl.sum(g * dt * x, 1), mask=t_in)
        tl.store(dc_ptr + (part + t) * N + n, tl.sum(h * dy, 1), mask=t_in)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(ddt_ptr + at, ddt, mask=mask)


class SelectiveScan(torch.autograd.Function):
    """`selective_scan.selective_scan` on a GPU."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and last state from x, dt, A, B, C and the start."""
        x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, start_BDN = (arg.contiguous() for arg in args)
        (batch, time, channels), states = x_BTD.shape, a_DN.shape[1]
        num_chunks = triton.cdiv(time, BLOCK_T)
        decay_BKX, sum_BKX = _summary(x_BTD, dt_BTD, a_DN, b_BTN, adjoint=False)
        start_BX = start_BDN.flatten(1)
        (end_BKX,) = launch((decay_BKX,), (sum_BKX,), (start_BX,))
        starts_BKX = shifted(end_BKX, start_BX)
        y_BTD = torch.empty_like(x_BTD)
        _output_kernel[_grid(x_BTD)](
            x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, starts_BKX, y_BTD, time, channels, num_chunks,
            N=states, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, starts_BKX)
        return y_BTD, end_BKX[:, -1].reshape(batch, channels, states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the six inputs."""
        x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, starts_BKX = ctx.saved_tensors
        dy_BTD, last_BX = grads[0].contiguous(), grads[1].flatten(1)
        (batch, time, channels), states = x_BTD.shape, a_DN.shape[1]
        num_chunks = triton.cdiv(time, BLOCK_T)
        decay_BKX, sum_BKX = _summary(dy_BTD, dt_BTD, a_DN, c_BTN, adjoint=True)
        later_BKX = torch.cat([sum_BKX[:, 1:], last_BX[:, None]], 1)
        none_BX = torch.zeros_like(last_BX)
        (end_BKX,) = launch((decay_BKX,), (later_BKX,), (none_BX,), reverse=True)
        dx_BTD, ddt_BTD = torch.empty_like(x_BTD), torch.empty_like(dt_BTD)
        da_BKX = torch.empty_like(decay_BKX)
        parts = (_grid(x_BTD)[1], batch, time, states)
        db_parts, dc_parts = dt_BTD.new_empty(parts), dt_BTD.new_empty(parts)
        _gradient_kernel[_grid(x_BTD)](
            x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, starts_BKX, dy_BTD, end_BKX,
            dx_BTD, ddt_BTD, da_BKX, db_parts, dc_parts, time, channels, num_chunks,
            N=states, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
        )  # fmt: skip
        start_grad = sum_BKX[:, 0] + decay_BKX[:, 0] * end_BKX[:, 0]
        return (
            dx_BTD,
            ddt_BTD,
            da_BKX.sum((0, 1)).view_as(a_DN),
            db_parts.sum(0).to(b_BTN.dtype),
            dc_parts.sum(0).to(c_BTN.dtype),
            start_grad.view(batch, channels, states),
        )


def _grid(x_BTD: Tensor) -> tuple[int, int]:
    batch, time, channels = x_BTD.shape
    return batch * triton.cdiv(time, BLOCK_T), triton.cdiv(channels, BLOCK_D)


def _summary(
    x_BTD: Tensor, dt_BTD: Tensor, a_DN: Tensor, w_BTN: Tensor, adjoint: bool
) -> tuple[Tensor, Tensor]:
    batch, time, channels = x_BTD.shape
    num_chunks = triton.cdiv(time, BLOCK_T)
    decay_BKX, sum_BKX = dt_BTD.new_empty(2, batch, num_chunks, a_DN.numel()).unbind(0)
    _summary_kernel[_grid(x_BTD)](
        x_BTD, dt_BTD, a_DN, w_BTN, decay_BKX, sum_BKX, time, channels, num_chunks,
        N=a_DN.shape[1], ADJOINT=adjoint, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
    )  # fmt: skip
    return decay_BKX, sum_BKX
