"""The liquid scan on a GPU: chunks of time in parallel, their states carried in between.

The same three passes as `gpu.selective_scan`, for complex modes whose decays are affine in the
input; a chunk's decay has no closed form, so the first pass scans too. All arithmetic is float32.

Imported only where Triton is installed. Shape suffixes: B batch, T time, D channels, M modes per
channel, K chunks, X = D M.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.chunks import shifted
from archloop.blocks.ops.gpu.lengths import any_length
from archloop.blocks.ops.gpu.scan import compose_pair, last_row, launch
from archloop.blocks.ops.scan import Pair

BLOCK_T, BLOCK_D, NUM_WARPS = 32, 16, 1


@triton.jit
def _tile(
    v_ptr, keep_ptr, num_steps, num_channels, num_chunks,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Where this program's tokens and channels stand, their inputs, and which tokens hold still."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    t = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (t < num_steps)[:, None] & (d < num_channels)[None, :]
    at = (row * num_steps + t[:, None]) * num_channels + d[None, :]
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    keep = tl.load(keep_ptr + row * num_steps + t, mask=t < num_steps, other=1.0)[:, None]
    held = tl.program_id(0).to(tl.int64) * num_channels + d
    return at, mask, d, v * (1.0 - keep), keep, held


@any_length()
def _summary_kernel(
    v_ptr, keep_ptr, ar_ptr, ai_ptr, br_ptr, bi_ptr, pr_ptr, pi_ptr, sr_ptr, si_ptr,
    num_steps, num_channels, num_chunks,
    M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Each chunk's decay p and what its tokens add to the state after it."""
    _, _, d, v, keep, held = _tile(
        v_ptr, keep_ptr, num_steps, num_channels, num_chunks, BLOCK_T, BLOCK_D
    )
    inside = d < num_channels
    for m in range(M):
        ar = tl.load(ar_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ai = tl.load(ai_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_r = v * tl.load(br_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_i = v * tl.load(bi_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        move_r, move_i = keep + (1.0 - keep) * ar + push_r, (1.0 - keep) * ai + push_i
        pr, pi, hr, hi = tl.associative_scan((move_r, move_i, push_r, push_i), 0, compose_pair)
        tl.store(pr_ptr + held * M + m, last_row(pr, BLOCK_T), mask=inside)
        tl.store(pi_ptr + held * M + m, last_row(pi, BLOCK_T), mask=inside)
        tl.store(sr_ptr + held * M + m, last_row(hr, BLOCK_T), mask=inside)
        tl.store(si_ptr + held * M + m, last_row(hi, BLOCK_T), mask=inside)


@any_length()
def _output_kernel(
    v_ptr, keep_ptr, ar_ptr, ai_ptr, br_ptr, bi_ptr, cr_ptr, ci_ptr, hr_ptr, hi_ptr, y_ptr,
    num_steps, num_channels, num_chunks,
    M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    at, mask, d, v, keep, held = _tile(
        v_ptr, keep_ptr, num_steps, num_channels, num_chunks, BLOCK_T, BLOCK_D
    )
    inside = d < num_channels
    y = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for m in range(M):
        ar = tl.load(ar_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ai = tl.load(ai_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_r = v * tl.load(br_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_i = v * tl.load(bi_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        cr = tl.load(cr_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ci = tl.load(ci_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        start_r = tl.load(hr_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        start_i = tl.load(hi_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        move_r, move_i = keep + (1.0 - keep) * ar + push_r, (1.0 - keep) * ai + push_i
        pr, pi, hr, hi = tl.associative_scan((move_r, move_i, push_r, push_i), 0, compose_pair)
        hr += pr * start_r - pi * start_i
        hi += pr * start_i + pi * start_r
        y += 2.0 * (cr * hr - ci * hi)
    tl.store(y_ptr + at, y, mask=mask)


@any_length()
def _adjoint_kernel(
    v_ptr, keep_ptr, dy_ptr, ar_ptr, ai_ptr, br_ptr, bi_ptr, cr_ptr, ci_ptr, sr_ptr, si_ptr,
    num_steps, num_channels, num_chunks,
    M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What each chunk's outputs add to the gradient of the state before it."""
    at, mask, d, v, keep, held = _tile(
        v_ptr, keep_ptr, num_steps, num_channels, num_chunks, BLOCK_T, BLOCK_D
    )
    inside = d < num_channels
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0)
    for m in range(M):
        ar = tl.load(ar_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ai = tl.load(ai_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_r = v * tl.load(br_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        push_i = v * tl.load(bi_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        cr = tl.load(cr_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ci = tl.load(ci_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        move_r, move_i = keep + (1.0 - keep) * ar + push_r, (1.0 - keep) * ai + push_i
        zero = tl.zeros_like(push_r)
        pr, pi, _, _ = tl.associative_scan((move_r, move_i, zero, zero), 0, compose_pair)
        # conj(p) conj(c) dy, summed: how the state before the chunk reaches each output.
        tl.store(sr_ptr + held * M + m, tl.sum(2.0 * dy * (cr * pr - ci * pi), 0), mask=inside)
        tl.store(si_ptr + held * M + m, -tl.sum(2.0 * dy * (cr * pi + ci * pr), 0), mask=inside)


@any_length()
def _gradient_kernel(
    v_ptr, keep_ptr, dy_ptr, ar_ptr, ai_ptr, br_ptr, bi_ptr, cr_ptr, ci_ptr,
    hr_ptr, hi_ptr, er_ptr, ei_ptr,
    dv_ptr, dar_ptr, dai_ptr, dbr_ptr, dbi_ptr, dcr_ptr, dci_ptr,
    num_steps, num_channels, num_chunks,
    M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients of one tile; those of a, b and c are partial sums, one a chunk and row."""
    at, mask, d, v, keep, held = _tile(
        v_ptr, keep_ptr, num_steps, num_channels, num_chunks, BLOCK_T, BLOCK_D
    )
    inside = d < num_channels
    step = tl.arange(0, BLOCK_T)
    t = (tl.program_id(0) % num_chunks) * BLOCK_T + step
    follows = (step < BLOCK_T - 1) & (t + 1 < num_steps)
    row_at = (tl.program_id(0).to(tl.int64) // num_chunks) * num_steps + t
    next_keep = tl.load(keep_ptr + row_at + 1, mask=follows, other=1.0)[:, None]
    next_v = tl.load(v_ptr + at + num_channels, mask=mask & follows[:, None], other=0.0)
    next_v = next_v * (1.0 - next_keep)
    # Scanning each token's predecessor gives the state before it, which gradients need.
    past = (step > 0) & (t < num_steps)
    past_keep = tl.load(keep_ptr + row_at - 1, mask=past, other=1.0)[:, None]
    past_v = tl.load(v_ptr + at - num_channels, mask=mask & past[:, None], other=0.0)
    past_v = past_v * (1.0 - past_keep)
    dy = tl.load(dy_ptr + at, mask=mask, other=0.0)
    dv = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for m in range(M):
        ar = tl.load(ar_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ai = tl.load(ai_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        br = tl.load(br_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        bi = tl.load(bi_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        cr = tl.load(cr_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        ci = tl.load(ci_ptr + d * M + m, mask=inside, other=0.0)[None, :]
        start_r = tl.load(hr_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        start_i = tl.load(hi_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        end_r = tl.load(er_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        end_i = tl.load(ei_ptr + held * M + m, mask=inside, other=0.0)[None, :]
        push_r, push_i = past_v * br, past_v * bi
        move_r = past_keep + (1.0 - past_keep) * ar + push_r
        move_i = (1.0 - past_keep) * ai + push_i
        pr, pi, hr, hi = tl.associative_scan((move_r, move_i, push_r, push_i), 0, compose_pair)
        before_r = hr + pr * start_r - pi * start_i
        before_i = hi + pr * start_i + pi * start_r
        move_r, move_i = keep + (1.0 - keep) * ar + v * br, (1.0 - keep) * ai + v * bi
        hr = move_r * before_r - move_i * before_i + v * br
        hi = move_r * before_i + move_i * before_r + v * bi
        next_r = next_keep + (1.0 - next_keep) * ar + next_v * br
        next_i = -((1.0 - next_keep) * ai + next_v * bi)
        pr, pi, gr, gi = tl.associative_scan(
            (next_r, next_i, 2.0 * dy * cr, -2.0 * dy * ci), 0, compose_pair, reverse=True
        )
        gr += pr * end_r - pi * end_i
        gi += pr * end_i + pi * end_r
        da_r, da_i = gr * before_r + gi * before_i, gi * before_r - gr * before_i
        db_r, db_i = da_r + gr, da_i + gi
        dv += br * db_r + bi * db_i
        free = 1.0 - keep
        tl.store(dar_ptr + held * M + m, tl.sum(free * da_r, 0), mask=inside)
        tl.store(dai_ptr + held * M + m, tl.sum(free * da_i, 0), mask=inside)
        tl.store(dbr_ptr + held * M + m, tl.sum(v * db_r, 0), mask=inside)
        tl.store(dbi_ptr + held * M + m, tl.sum(v * db_i, 0), mask=inside)
        tl.store(dcr_ptr + held * M + m, tl.sum(2.0 * dy * hr, 0), mask=inside)
        tl.store(dci_ptr + held * M + m, -tl.sum(2.0 * dy * hi, 0), mask=inside)
    tl.store(dv_ptr + at, dv * (1.0 - keep), mask=mask)


class LiquidScan(torch.autograd.Function):
    """`liquid_scan.liquid_scan` on a GPU: v, pairs a, b, c and start, and 1 where time stands."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, and real and imaginary part of the last state."""
        v_BTD, *coefficients, sr, si, keep_BT = (arg.contiguous() for arg in args)
        ab, (batch, time, channels) = coefficients[:4], v_BTD.shape
        modes = ab[0].shape[1]
        sizes = (time, channels, triton.cdiv(time, BLOCK_T))
        decay, added = _pairs(v_BTD, modes), _pairs(v_BTD, modes)
        _summary_kernel[_grid(v_BTD)](
            v_BTD,
            keep_BT,
            *ab,
            *decay,
            *added,
            *sizes,
            M=modes,
            BLOCK_T=BLOCK_T,
            BLOCK_D=BLOCK_D,
            num_warps=NUM_WARPS,
        )
        first = (sr.flatten(1), si.flatten(1))
        ends = launch(decay, added, first)
        starts = [shifted(end, start) for end, start in zip(ends, first, strict=True)]
        y_BTD = torch.empty_like(v_BTD)
        _output_kernel[_grid(v_BTD)](
            v_BTD, keep_BT, *coefficients, *starts, y_BTD, *sizes,
            M=modes, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(v_BTD, keep_BT, *coefficients, *decay, *starts)
        re, im = (end[:, -1].reshape(batch, channels, modes) for end in ends)
        return y_BTD, re, im

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all but the last input."""
        v_BTD, keep_BT, *coefficients, pr, pi, start_r, start_i = ctx.saved_tensors
        dy_BTD, last = grads[0].contiguous(), [grad.flatten(1) for grad in grads[1:]]
        (batch, time, channels), modes = v_BTD.shape, coefficients[0].shape[1]
        sizes = (time, channels, triton.cdiv(time, BLOCK_T))
        added = _pairs(v_BTD, modes)
        _adjoint_kernel[_grid(v_BTD)](
            v_BTD, keep_BT, dy_BTD, *coefficients, *added, *sizes,
            M=modes, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
        )  # fmt: skip
        later = tuple(
            torch.cat([x[:, 1:], end[:, None]], 1) for x, end in zip(added, last, strict=True)
        )
        zero = torch.zeros_like(last[0])
        er, ei = launch((pr, pi), later, (zero, zero), reverse=True)
        dv_BTD = torch.empty_like(v_BTD)
        parts = [torch.empty_like(pr) for _ in range(6)]
        _gradient_kernel[_grid(v_BTD)](
            v_BTD, keep_BT, dy_BTD, *coefficients, start_r, start_i, er, ei, dv_BTD, *parts,
            *sizes, M=modes, BLOCK_T=BLOCK_T, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS,
        )  # fmt: skip
        sums = [part.sum((0, 1)).view(channels, modes) for part in parts]
        # The gradient before the first chunk: its own outputs', and the end's through its decay.
        shape = (batch, channels, modes)
        start = (
            (added[0] + pr * er + pi * ei)[:, 0].reshape(shape),
            (added[1] + pr * ei - pi * er)[:, 0].reshape(shape),
        )
        return dv_BTD, *sums, *start, None


def _grid(v_BTD: Tensor) -> tuple[int, int]:
    batch, time, channels = v_BTD.shape
    return batch * triton.cdiv(time, BLOCK_T), triton.cdiv(channels, BLOCK_D)


def _pairs(v_BTD: Tensor, modes: int) -> Pair:
    """Room for one complex number a chunk, channel and mode: two of (B, K, X)."""
    batch, time, channels = v_BTD.shape
    shape = (2, batch, triton.cdiv(time, BLOCK_T), channels * modes)
    re, im = v_BTD.new_empty(shape).unbind(0)
    return re, im
