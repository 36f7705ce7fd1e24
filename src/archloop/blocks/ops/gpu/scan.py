"""The diagonal recurrence on a GPU: one program a row and feature block, tiles of time in turn.

Within a tile the recurrence is an associative scan; between tiles the last state is carried. The
backward pass is the same kernel, run from the end with each decay taken one step later and
conjugated. Everything is float32. Imported only where Triton is installed.

Shape suffixes: B batch, T time, F features.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.chunks import shifted
from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T, BLOCK_F = 64, 16


@triton.jit
def compose(a1, b1, a2, b2):
    """First ``h -> a1 h + b1``, then ``h -> a2 h + b2``."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def compose_pair(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    """As `compose`, in pairs."""
    return (
        ar1 * ar2 - ai1 * ai2,
        ar1 * ai2 + ai1 * ar2,
        ar2 * br1 - ai2 * bi1 + br2,
        ar2 * bi1 + ai2 * br1 + bi2,
    )


@triton.jit
def last_row(x, BLOCK_T: tl.constexpr):
    """The last row of a tile."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_T)[:, None] == BLOCK_T - 1, x, 0.0), 0)


@any_length()
def _scan_kernel(
    a_ptr, ai_ptr, b_ptr, bi_ptr, start_ptr, starti_ptr, h_ptr, hi_ptr,
    num_steps, num_features, num_blocks,
    a_b, a_t, a_f, b_b, b_t, b_f,
    PAIR: tl.constexpr, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    # Rows may be folded into features, so both share the axis that holds the most programs.
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    f = block.to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < num_features
    carry = tl.load(start_ptr + row * num_features + f, mask=inside, other=0.0)
    carryi = carry
    if PAIR:
        carryi = tl.load(starti_ptr + row * num_features + f, mask=inside, other=0.0)
    for first in range(0, num_steps, BLOCK_T):
        step = first + tl.arange(0, BLOCK_T)
        t = step
        a_at = step
        if REVERSE:
            t = num_steps - 1 - step
            a_at = t + 1
        mask = (step < num_steps)[:, None] & inside[None, :]
        a_mask = mask & (a_at < num_steps)[:, None]
        a_off = row * a_b + a_at[:, None].to(tl.int64) * a_t + f[None, :] * a_f
        b_off = row * b_b + t[:, None].to(tl.int64) * b_t + f[None, :] * b_f
        h_off = (row * num_steps + t[:, None].to(tl.int64)) * num_features + f[None, :]
        a = tl.load(a_ptr + a_off, mask=a_mask, other=1.0)
        b = tl.load(b_ptr + b_off, mask=mask, other=0.0)
        if PAIR:
            ai = tl.load(ai_ptr + a_off, mask=a_mask, other=0.0)
            bi = tl.load(bi_ptr + b_off, mask=mask, other=0.0)
            if REVERSE:
                ai = -ai
            pr, pi, hr, hi = tl.associative_scan((a, ai, b, bi), 0, compose_pair)
            h = hr + pr * carry[None, :] - pi * carryi[None, :]
            hi = hi + pr * carryi[None, :] + pi * carry[None, :]
            tl.store(hi_ptr + h_off, hi, mask=mask)
            carryi = last_row(hi, BLOCK_T)
        else:
            p, h = tl.associative_scan((a, b), 0, compose)
            h = h + p * carry[None, :]
        tl.store(h_ptr + h_off, h, mask=mask)
        carry = last_row(h, BLOCK_T)


def launch(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], start: tuple[Tensor, ...], reverse: bool = False
) -> tuple[Tensor, ...]:
    """States of one recurrence; each argument is one real tensor or a pair."""
    batch, time, features = b[0].shape
    pair = len(b) == 2
    # The kernel addresses the imaginary part of a pair by the strides of the real part.
    if pair and (a[0].stride() != a[1].stride()):
        a = tuple(x.contiguous() for x in a)
    if pair and (b[0].stride() != b[1].stride()):
        b = tuple(x.contiguous() for x in b)
    start = tuple(x.contiguous() for x in start)
    h = tuple(torch.empty(batch, time, features, dtype=x.dtype, device=x.device) for x in b)
    blocks = triton.cdiv(features, BLOCK_F)
    _scan_kernel[(batch * blocks,)](
        a[0], a[-1], b[0], b[-1], start[0], start[-1], h[0], h[-1],
        time, features, blocks, *a[0].stride(), *b[0].stride(),
        PAIR=pair, REVERSE=reverse, BLOCK_T=BLOCK_T, BLOCK_F=BLOCK_F,
    )  # fmt: skip
    return h


class TritonScan(torch.autograd.Function):
    """`scan.scan` on a GPU."""

    @staticmethod
    def forward(ctx: Any, a_BTF: Tensor, b_BTF: Tensor, start_BF: Tensor) -> Tensor:
        """All states."""
        (h_BTF,) = launch((a_BTF,), (b_BTF,), (start_BF,))
        ctx.save_for_backward(a_BTF, h_BTF, start_BF)
        return h_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of decays, inputs and start."""
        a_BTF, h_BTF, start_BF = ctx.saved_tensors
        (back_BTF,) = launch((a_BTF,), grads, (torch.zeros_like(start_BF),), reverse=True)
        return back_BTF * shifted(h_BTF, start_BF), back_BTF, a_BTF[:, 0] * back_BTF[:, 0]


class TritonScanPair(torch.autograd.Function):
    """`scan.scan_pair` on a GPU."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, ...]:
        """All states; six tensors in, two out."""
        a, b, start = args[:2], args[2:4], args[4:]
        h = launch(a, b, start)
        ctx.save_for_backward(*a, *h, *start)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the six inputs."""
        ar, ai, hr, hi, sr, si = ctx.saved_tensors
        zero = torch.zeros_like(sr)
        gr, gi = launch((ar, ai), grads, (zero, zero), reverse=True)
        pr, pi = shifted(hr, sr), shifted(hi, si)
        start = (
            ar[:, 0] * gr[:, 0] + ai[:, 0] * gi[:, 0],
            ar[:, 0] * gi[:, 0] - ai[:, 0] * gr[:, 0],
        )
        return gr * pr + gi * pi, gi * pr - gr * pi, gr, gi, *start
