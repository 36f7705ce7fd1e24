"""One token through the dense layers: matrix-vector products at memory bandwidth.

At batch 1 each weight is read once for two FLOPs, so all that counts is keeping loads in flight.
Every program takes a few rows of the weight matrix, with the norm before it, the activation after
it or the residual around it folded in, so that a block is four kernels instead of fifteen.

With programmatic dependent launch (PDL) a kernel starts while the one before it drains: it issues
its first weight loads, which depend on nobody, and only then waits for its input. `wait` must come
before the first read of anything that an earlier kernel of the same step wrote.

A kernel whose programs are all on the card from the beginning (`plans`) lets the next one start at
once. Any other waits until its own loads are done: started earlier, the next kernel's few programs
crowd the processors that have room and leave others idle, which at long contexts halved the speed.

Small tensors are held by several warps at once, so a value that a program reads and then overwrites
needs a barrier between: `tl.debug_barrier` is a plain block barrier.

Where a norm stands behind a half, its output waits beside the stream, and the kernel that reads the
stream next adds it on the way in (`row`): the chain of kernels, which is what a step waits for, is
one shorter.

Shape suffixes: D model width, K input width, N output width, F hidden width, L past inputs.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from archloop.runtimes.cuda.kernels import plans
from archloop.runtimes.cuda.kernels.plans import Plan
from archloop.runtimes.cuda.row import Incoming


@triton.jit
def normed_stream(
    x, y, post_weight, total, norm_weight, post_eps, eps,
    K: tl.constexpr, WAITS: tl.constexpr, HAS_NORM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The stream times the norm's weight, (1, BLOCK_K), and what the norm multiplies products by.

    What waits to be added (`row`) is, rounded as `rows.add_normed` rounds it; the first program
    writes the sum.
    """
    k = tl.arange(0, BLOCK_K)
    # All loads before the first sum: each sum is a barrier that no later load is moved across.
    value = tl.load(x + k, mask=k < K, other=0.0)
    added, post_factor, factor = value, value, value
    if WAITS:
        added = tl.load(y + k, mask=k < K, other=0.0)
        post_factor = tl.load(post_weight + k, mask=k < K, other=0.0)
    if HAS_NORM:
        factor = tl.load(norm_weight + k, mask=k < K, other=0.0)
    if WAITS:
        normed = added.to(tl.float32)
        normed *= tl.rsqrt(tl.sum(normed * normed, 0) / K + post_eps) * post_factor.to(tl.float32)
        value = (value.to(tl.float32) + normed.to(value.dtype).to(tl.float32)).to(value.dtype)
        if tl.program_id(0) == 0:
            tl.store(total + k, value, mask=k < K)
    value = value.to(tl.float32)
    scale = 1.0
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
        value *= factor.to(tl.float32)
    return value[None, :], scale


@triton.jit
def rows_of_piece(
    piece, w, out, w_more, out_more, N: tl.constexpr, MORE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A piece's matrix, output, rows and their limit; the last pieces are of a second matrix."""
    limit = N
    if MORE > 0:
        own: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
        is_more = piece >= own
        w, out = tl.where(is_more, w_more, w), tl.where(is_more, out_more, out)
        piece, limit = tl.where(is_more, piece - own, piece), tl.where(is_more, MORE, N)
    return w, out, piece * BLOCK_N + tl.arange(0, BLOCK_N), limit


@triton.jit
def part_of_rows(w, rows, start, limit, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Columns from `start` on of rows of a matrix, (rows, BLOCK_K)."""
    k = start + tl.arange(0, BLOCK_K)
    inside = (rows < limit)[:, None] & (k < K)[None, :]
    return tl.load(w + rows[:, None].to(tl.int64) * K + k[None, :], mask=inside, other=0.0)


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
    PIECES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """``out[n] (+)= w[n] . norm(x)``, BLOCK_N rows a piece; after the last, a second matrix's."""
    first = tl.program_id(0)
    own_w, own_out, rows, limit = rows_of_piece(first, w, out, w_more, out_more, N, MORE, BLOCK_N)
    tile = part_of_rows(own_w, rows, 0, limit, K, BLOCK_K)
    if EARLY:
        gdc_launch_dependents()
    if PDL:
        gdc_wait()
    if K <= BLOCK_K:
        value_1K, scale = normed_stream(
            x, y, post_weight, total, norm_weight, post_eps, eps, K, WAITS, HAS_NORM, BLOCK_K
        )
        for piece in range(first, PIECES, PROGRAMS):
            now, now_out, now_rows, now_limit = tile, own_out, rows, limit
            if PIECES > PROGRAMS:
                # The next piece is on its way while this one is summed.
                own_w, own_out, rows, limit = rows_of_piece(
                    piece + PROGRAMS, w, out, w_more, out_more, N, MORE, BLOCK_N
                )
                tile = part_of_rows(own_w, rows, 0, limit, K, BLOCK_K)
            mask = now_rows < now_limit
            held = tl.zeros((BLOCK_N,), tl.float32)
            if RESIDUAL:
                held = tl.load(now_out + now_rows, mask=mask, other=0.0).to(tl.float32)
            result = tl.sum(now.to(tl.float32) * value_1K, 1) * scale + held
            if RESIDUAL:
                tl.debug_barrier()
            tl.store(now_out + now_rows, result.to(out.dtype.element_ty), mask=mask)
        if PDL and not EARLY:
            gdc_launch_dependents()
    else:
        tl.static_assert(PIECES == PROGRAMS and not (WAITS or HAS_NORM))
        mask = rows < limit
        held = tl.zeros((BLOCK_N,), tl.float32)
        if RESIDUAL:
            held = tl.load(own_out + rows, mask=mask, other=0.0).to(tl.float32)
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in tl.static_range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            if start > 0:
                tile = part_of_rows(own_w, rows, start, limit, K, BLOCK_K)
            value = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
            acc += tile.to(tl.float32) * value[None, :]
        if PDL and not EARLY:
            gdc_launch_dependents()
        result = tl.sum(acc, 1) + held
        if RESIDUAL:
            tl.debug_barrier()
        tl.store(own_out + rows, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def convolve(
    b,
    c,
    u,
    rows,
    conv_weight,
    past,
    out,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
    L_PAD: tl.constexpr,
):
    """Gates and convolution of the channels `rows`, from their products with the stream."""
    dtype = out.dtype.element_ty
    b, c, u = b.to(dtype).to(tl.float32), c.to(dtype).to(tl.float32), u.to(dtype).to(tl.float32)
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
    PIECES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Norm, input projection, gates, convolution and its state, BLOCK_D channels a piece."""
    first = tl.program_id(0)
    rows = first * BLOCK_D + tl.arange(0, BLOCK_D)
    w_c, w_u = w + D * D, w + 2 * D * D
    tile_b = part_of_rows(w, rows, 0, D, D, BLOCK_K)
    tile_c = part_of_rows(w_c, rows, 0, D, D, BLOCK_K)
    tile_u = part_of_rows(w_u, rows, 0, D, D, BLOCK_K)
    if EARLY:
        gdc_launch_dependents()
    if PDL:
        gdc_wait()
    value_1K, scale = normed_stream(
        x, y, post_weight, total, norm_weight, post_eps, eps, D, WAITS, True, BLOCK_K
    )
    for piece in range(first, PIECES, PROGRAMS):
        now_b, now_c, now_u, now = tile_b, tile_c, tile_u, rows
        if PIECES > PROGRAMS:
            rows = (piece + PROGRAMS) * BLOCK_D + tl.arange(0, BLOCK_D)
            tile_b = part_of_rows(w, rows, 0, D, D, BLOCK_K)
            tile_c = part_of_rows(w_c, rows, 0, D, D, BLOCK_K)
            tile_u = part_of_rows(w_u, rows, 0, D, D, BLOCK_K)
        b = tl.sum(now_b.to(tl.float32) * value_1K, 1) * scale
        c = tl.sum(now_c.to(tl.float32) * value_1K, 1) * scale
        u = tl.sum(now_u.to(tl.float32) * value_1K, 1) * scale
        convolve(b, c, u, now, conv_weight, past, out, D, KERNEL, L_PAD)
    if PDL and not EARLY:
        gdc_launch_dependents()


@triton.jit
def gate_up_kernel(
    x,
    y,
    post_weight,
    total,
    norm_weight,
    w,
    out,
    post_eps,
    eps,
    K: tl.constexpr,
    F: tl.constexpr,
    WAITS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
):
    """``out[f] = silu(w[f] . norm(x)) * (w[F + f] . norm(x))``, BLOCK_F hidden units a piece."""
    first = tl.program_id(0)
    rows = first * BLOCK_F + tl.arange(0, BLOCK_F)
    w_up = w + F * K
    tile_gate = part_of_rows(w, rows, 0, F, K, BLOCK_K)
    tile_up = part_of_rows(w_up, rows, 0, F, K, BLOCK_K)
    if EARLY:
        gdc_launch_dependents()
    if PDL:
        gdc_wait()
    value_1K, scale = normed_stream(
        x, y, post_weight, total, norm_weight, post_eps, eps, K, WAITS, True, BLOCK_K
    )
    for piece in range(first, PIECES, PROGRAMS):
        now_gate, now_up, now = tile_gate, tile_up, rows
        if PIECES > PROGRAMS:
            rows = (piece + PROGRAMS) * BLOCK_F + tl.arange(0, BLOCK_F)
            tile_gate = part_of_rows(w, rows, 0, F, K, BLOCK_K)
            tile_up = part_of_rows(w_up, rows, 0, F, K, BLOCK_K)
        gate = tl.sum(now_gate.to(tl.float32) * value_1K, 1) * scale
        up = tl.sum(now_up.to(tl.float32) * value_1K, 1) * scale
        hidden = gate * tl.sigmoid(gate) * up
        tl.store(out + now, hidden.to(out.dtype.element_ty), mask=now < F)
    if PDL and not EARLY:
        gdc_launch_dependents()


# --- launching --------------------------------------------------------------------------------


def incoming(x: Tensor | Incoming) -> tuple[tuple[Tensor, ...], float, bool]:
    """The four addresses that a kernel is given of its input, an epsilon, and whether any waits."""
    if isinstance(x, Incoming):
        weight, eps = x.post_norm
        return (x.x_D, x.y_D, weight, x.total_D), eps, True
    return (x, x, x, x), 0.0, False  # Three of them are not read.


def linear(
    x_K: Tensor | Incoming,
    w_NK: Tensor,
    out_N: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    residual: bool = False,
    more: tuple[Tensor, Tensor] | None = None,
    plan: Plan | None = None,
    pdl: bool = False,
) -> Tensor:
    """``out = w norm(x)``, or ``out += ...`` with `residual`. Returns `out_N`.

    `more` is a second matrix over the same input and where its product goes, in the same kernel.
    """
    num_rows, width = w_NK.shape
    plan = plan or plans.linear(num_rows, width)
    given, post_eps, waits = incoming(x_K)
    weight, eps = norm or (given[0], 0.0)
    w_more, out_more = more or (w_NK, out_N)
    num_more = w_more.shape[0] if more else 0
    shared = plans.grid(
        plan, (num_rows, num_more), width, w_NK, whole=waits or norm is not None, pdl=pdl
    )
    linear_kernel[(shared.programs,)](
        *given, weight, w_NK, out_N, w_more, out_more, post_eps, eps, width, num_rows, num_more,
        waits, norm is not None, residual, *shared, num_warps=plan.warps, launch_pdl=pdl,
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
    plan: Plan | None = None,
    pdl: bool = False,
) -> Tensor:
    """``c * conv(b * u)`` with ``(b, c, u) = w norm(x)``; advances `past_LD`. Returns `out_D`."""
    (width, kernel), plan = conv_weight_DK.shape, plan or plans.CONV
    given, post_eps, waits = incoming(x_D)
    shared = plans.grid(plan, (width,), width, w, whole=True, pdl=pdl)
    conv_kernel[(shared.programs,)](
        *given, norm[0], w, conv_weight_DK, past_LD, out_D, post_eps, norm[1], width, kernel,
        triton.next_power_of_2(kernel - 1), waits, *shared,
        num_warps=plan.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_D


def gate_up(
    x_K: Tensor | Incoming,
    norm: tuple[Tensor, float],
    w: Tensor,
    out_F: Tensor,
    *,
    plan: Plan | None = None,
    pdl: bool = False,
) -> Tensor:
    """Hidden layer of a SwiGLU whose gate and up rows are stacked in `w`. Returns `out_F`."""
    hidden, width, plan = out_F.shape[0], w.shape[1], plan or plans.GATE_UP
    given, post_eps, waits = incoming(x_K)
    shared = plans.grid(plan, (hidden,), width, w, whole=True, pdl=pdl)
    gate_up_kernel[(shared.programs,)](
        *given, norm[0], w, out_F, post_eps, norm[1], width, hidden, waits, *shared,
        num_warps=plan.warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_F
