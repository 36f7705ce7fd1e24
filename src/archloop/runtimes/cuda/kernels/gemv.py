"""One token through the dense layers: matrix-vector products at memory bandwidth.

At batch 1 each weight is read once for two FLOPs, so all that counts is keeping loads in flight.
Every program takes a few rows of the weight matrix, with the norm before it, the activation after
it or the residual around it folded in, so that a block is four kernels instead of fifteen.

With programmatic dependent launch (PDL) a kernel starts while the one before it drains: it issues
its first weight loads, which depend on nobody, and only then waits for its input. `wait` must come
before the first read of anything that an earlier kernel of the same step wrote. A kernel lets the
next one start only when its own loads are done: started earlier, the next kernel's few programs
crowd the processors that have room and leave others idle, which at long contexts halved the speed.

Small tensors are held by several warps at once, so a value that a program reads and then overwrites
needs a barrier between: `tl.debug_barrier` is a plain block barrier.

Where a norm stands behind a half, its output waits beside the stream, and a mixer's first kernel
adds it on the way in (`row`): every program reads the whole row in any case, and the chain of
kernels, which is what a step waits for, is one shorter. Kernels of many programs, a feed-forward's
and the head's, leave that to a kernel of its own: each program would pay for the sum.

Shape suffixes: D model width, K input width, N output width, F hidden width, L past inputs.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from archloop.runtimes.cuda.row import Incoming


@triton.jit
def scale_of_waiting(y, eps, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """What the norm of a waiting output divides by, inverted."""
    cols = tl.arange(0, BLOCK_K)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        value = tl.load(y + start + cols, mask=start + cols < K, other=0.0).to(tl.float32)
        square += value * value
    return tl.rsqrt(tl.sum(square, 0) / K + eps)


@triton.jit
def stream_part(x, y, post_weight, total, scale, k, K: tl.constexpr, WAITS: tl.constexpr):
    """Columns `k` of the stream, with what waits to be added; the first program writes the sum.

    Rounded as `rows.add_normed` rounds it.
    """
    value = tl.load(x + k, mask=k < K, other=0.0)
    if WAITS:
        added = tl.load(y + k, mask=k < K, other=0.0).to(tl.float32)
        added *= scale * tl.load(post_weight + k, mask=k < K, other=0.0).to(tl.float32)
        added = added.to(value.dtype).to(tl.float32)
        value = (value.to(tl.float32) + added).to(value.dtype)
        if tl.program_id(0) == 0:
            tl.store(total + k, value, mask=k < K)
    return value.to(tl.float32)


@triton.jit
def linear_kernel(
    x,
    y,
    post_weight,
    total,
    norm_weight,
    w,
    out,
    w_more,
    out_more,
    post_eps,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    MORE: tl.constexpr,
    WAITS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out[n] (+)= w[n] . norm(x)`` for BLOCK_N rows; after the last, rows of a second matrix."""
    block, limit = tl.program_id(0), N
    if MORE > 0:
        own: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
        is_more = block >= own
        w, out = tl.where(is_more, w_more, w), tl.where(is_more, out_more, out)
        block, limit = tl.where(is_more, block - own, block), tl.where(is_more, MORE, N)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    w_rows = w + rows[:, None].to(tl.int64) * K
    in_range = (rows < limit)[:, None]
    tile = tl.load(w_rows + cols[None, :], mask=in_range & (cols < K)[None, :], other=0.0)
    if PDL:
        gdc_wait()
    held = tl.zeros((BLOCK_N,), tl.float32)
    if RESIDUAL:
        held = tl.load(out + rows, mask=rows < limit, other=0.0).to(tl.float32)
    waiting = 1.0
    if WAITS:
        waiting = scale_of_waiting(y, post_eps, K, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        k = start + cols
        if start > 0:
            tile = tl.load(w_rows + k[None, :], mask=in_range & (k < K)[None, :], other=0.0)
        value = stream_part(x, y, post_weight, total, waiting, k, K, WAITS)
        if HAS_NORM:
            square += value * value
            value *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
        acc += tile.to(tl.float32) * value[None, :]
    if PDL:
        gdc_launch_dependents()
    result = tl.sum(acc, 1)
    if HAS_NORM:
        result *= tl.rsqrt(tl.sum(square, 0) / K + eps)
    if RESIDUAL:
        tl.debug_barrier()
    tl.store(out + rows, (result + held).to(out.dtype.element_ty), mask=rows < limit)


@triton.jit
def conv_kernel(
    x,
    y,
    post_weight,
    total,
    norm_weight,
    w,
    conv_weight,
    past,
    out,
    post_eps,
    eps,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
    L_PAD: tl.constexpr,
    WAITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Norm, input projection, gates, convolution and its state for BLOCK_D channels."""
    rows = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    cols = tl.arange(0, BLOCK_K)
    w_b = w + rows[:, None] * D + cols[None, :]
    inside = (rows < D)[:, None] & (cols < D)[None, :]
    tile_b = tl.load(w_b, mask=inside, other=0.0)
    tile_c = tl.load(w_b + D * D, mask=inside, other=0.0)
    tile_u = tl.load(w_b + 2 * D * D, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    waiting = 1.0
    if WAITS:
        waiting = scale_of_waiting(y, post_eps, D, BLOCK_K)
    acc_b = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    acc_c = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    acc_u = tl.zeros((BLOCK_D, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, D, BLOCK_K):
        k = start + cols
        if start > 0:
            inside = (rows < D)[:, None] & (k < D)[None, :]
            tile_b = tl.load(w_b + start, mask=inside, other=0.0)
            tile_c = tl.load(w_b + start + D * D, mask=inside, other=0.0)
            tile_u = tl.load(w_b + start + 2 * D * D, mask=inside, other=0.0)
        value = stream_part(x, y, post_weight, total, waiting, k, D, WAITS)
        square += value * value
        value = (value * tl.load(norm_weight + k, mask=k < D, other=0.0).to(tl.float32))[None, :]
        acc_b += tile_b.to(tl.float32) * value
        acc_c += tile_c.to(tl.float32) * value
        acc_u += tile_u.to(tl.float32) * value
    if PDL:
        gdc_launch_dependents()
    scale = tl.rsqrt(tl.sum(square, 0) / D + eps)
    dtype = out.dtype.element_ty
    b = (tl.sum(acc_b, 1) * scale).to(dtype).to(tl.float32)
    c = (tl.sum(acc_c, 1) * scale).to(dtype).to(tl.float32)
    u = (tl.sum(acc_u, 1) * scale).to(dtype).to(tl.float32)
    z = (b * u).to(dtype)
    # Read last: held through the products, taps and past would cost registers, and a processor
    # has room for two programs only while each thread takes no more than 128.
    valid = rows < D
    tap = tl.arange(0, L_PAD)
    seen = valid[:, None] & (tap < KERNEL - 1)[None, :]
    places = past + tap[None, :] * D + rows[:, None]
    taps = conv_weight + rows * KERNEL
    older = tl.load(places, mask=seen, other=0.0)
    weights = tl.load(taps[:, None] + tap[None, :], mask=seen, other=0.0)
    last_tap = tl.load(taps + KERNEL - 1, mask=valid, other=0.0).to(tl.float32)
    convolved = tl.sum(older.to(tl.float32) * weights.to(tl.float32), 1)
    convolved += z.to(tl.float32) * last_tap
    tl.debug_barrier()
    tl.store(places - D, older, mask=seen & (tap > 0)[None, :])
    tl.store(past + (KERNEL - 2) * D + rows, z.to(past.dtype.element_ty), mask=valid)
    tl.store(out + rows, (c * convolved).to(dtype), mask=valid)


@triton.jit
def gate_up_kernel(
    x,
    norm_weight,
    w,
    out,
    eps,
    K: tl.constexpr,
    F: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out[f] = silu(w[f] . norm(x)) * (w[F + f] . norm(x))`` for BLOCK_F hidden units."""
    rows = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    cols = tl.arange(0, BLOCK_K)
    w_gate = w + rows[:, None].to(tl.int64) * K + cols[None, :]
    inside = (rows < F)[:, None] & (cols < K)[None, :]
    tile_gate = tl.load(w_gate, mask=inside, other=0.0)
    tile_up = tl.load(w_gate + F * K, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    acc_gate = tl.zeros((BLOCK_F, BLOCK_K), tl.float32)
    acc_up = tl.zeros((BLOCK_F, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        k = start + cols
        if start > 0:
            inside = (rows < F)[:, None] & (k < K)[None, :]
            tile_gate = tl.load(w_gate + start, mask=inside, other=0.0)
            tile_up = tl.load(w_gate + start + F * K, mask=inside, other=0.0)
        value = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        square += value * value
        value = (value * tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32))[None, :]
        acc_gate += tile_gate.to(tl.float32) * value
        acc_up += tile_up.to(tl.float32) * value
    if PDL:
        gdc_launch_dependents()
    scale = tl.rsqrt(tl.sum(square, 0) / K + eps)
    gate = tl.sum(acc_gate, 1) * scale
    hidden = gate * tl.sigmoid(gate) * (tl.sum(acc_up, 1) * scale)
    tl.store(out + rows, hidden.to(out.dtype.element_ty), mask=rows < F)


# --- launching --------------------------------------------------------------------------------


def incoming(x: Tensor | Incoming) -> tuple[tuple[Tensor, ...], float, bool]:
    """The four addresses that a kernel is given of its input, an epsilon, and whether any waits."""
    if isinstance(x, Incoming):
        weight, eps = x.post_norm
        return (x.x_D, x.y_D, weight, x.total_D), eps, True
    return (x, x, x, x), 0.0, False  # Three of them are not read.


TILE = 2048
"""Weights a program reads in one go along the input width."""


def tile_width(width: int) -> int:
    """Columns per tile: the whole row where it fits."""
    padded: int = triton.next_power_of_2(width)
    return min(padded, TILE)


def linear_block(num_rows: int, width: int) -> tuple[int, int]:
    """Rows and warps a program that were fastest within whole steps of LFM2 and LFM3 on an H200.

    ``benchmarks/gpu_kernels.py`` times each kernel alone.
    """
    if num_rows <= 256:
        return 1, 4
    if num_rows >= 32768:
        return 4, 4
    if width > TILE:
        return 8, 4
    return (2, 8) if num_rows <= TILE else (8, 8)


def linear(
    x_K: Tensor | Incoming,
    w_NK: Tensor,
    out_N: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    residual: bool = False,
    more: tuple[Tensor, Tensor] | None = None,
    block: int | None = None,
    warps: int | None = None,
    pdl: bool = False,
) -> Tensor:
    """``out = w norm(x)``, or ``out += ...`` with `residual`. Returns `out_N`.

    `more` is a second matrix over the same input and where its product goes, in the same kernel.
    """
    num_rows, width = w_NK.shape
    best = linear_block(num_rows, width)
    block, warps = block or best[0], warps or best[1]
    given, post_eps, waits = incoming(x_K)
    weight, eps = norm or (given[0], 0.0)
    w_more, out_more = more or (w_NK, out_N)
    num_more = w_more.shape[0] if more else 0
    linear_kernel[(triton.cdiv(num_rows, block) + triton.cdiv(num_more, block),)](
        *given, weight, w_NK, out_N, w_more, out_more, post_eps, eps, width, num_rows, num_more,
        waits, norm is not None, residual, block, tile_width(width), pdl,
        num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_N


def conv(
    x_D: Tensor | Incoming,
    norm: tuple[Tensor, float],
    w: Tensor,
    conv_weight_DK: Tensor,
    past_LD: Tensor,
    out_D: Tensor,
    *,
    block: int = 4,
    warps: int = 4,
    pdl: bool = False,
) -> Tensor:
    """``c * conv(b * u)`` with ``(b, c, u) = w norm(x)``; advances `past_LD`. Returns `out_D`."""
    width, kernel = conv_weight_DK.shape
    given, post_eps, waits = incoming(x_D)
    conv_kernel[(triton.cdiv(width, block),)](
        *given, norm[0], w, conv_weight_DK, past_LD, out_D, post_eps, norm[1], width, kernel,
        triton.next_power_of_2(kernel - 1), waits, block, tile_width(width), pdl,
        num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_D


def gate_up(
    x_K: Tensor,
    norm: tuple[Tensor, float],
    w: Tensor,
    out_F: Tensor,
    *,
    block: int = 2,
    warps: int = 4,
    pdl: bool = False,
) -> Tensor:
    """Hidden layer of a SwiGLU whose gate and up rows are stacked in `w`. Returns `out_F`."""
    hidden, width = out_F.shape[0], w.shape[1]
    gate_up_kernel[(triton.cdiv(hidden, block),)](
        x_K, norm[0], w, out_F, norm[1], width, hidden,
        block, tile_width(width), pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_F
