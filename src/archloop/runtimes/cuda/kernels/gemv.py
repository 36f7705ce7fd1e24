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

Shape suffixes: D model width, K input width, N output width, F hidden width, L past inputs.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def linear_kernel(
    x,
    norm_weight,
    w,
    out,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    HAS_NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out[n] (+)= w[n] . norm(x)`` for BLOCK_N rows."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.arange(0, BLOCK_K)
    w_rows = w + rows[:, None].to(tl.int64) * K
    in_range = (rows < N)[:, None]
    tile = tl.load(w_rows + cols[None, :], mask=in_range & (cols < K)[None, :], other=0.0)
    if PDL:
        gdc_wait()
    held = tl.zeros((BLOCK_N,), tl.float32)
    if RESIDUAL:
        held = tl.load(out + rows, mask=rows < N, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    square = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        k = start + cols
        if start > 0:
            tile = tl.load(w_rows + k[None, :], mask=in_range & (k < K)[None, :], other=0.0)
        value = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            square += value * value
            value *= tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32)
        acc += tile.to(tl.float32) * value[None, :]
    if PDL:
        gdc_launch_dependents()
    y = tl.sum(acc, 1)
    if HAS_NORM:
        y *= tl.rsqrt(tl.sum(square, 0) / K + eps)
    if RESIDUAL:
        tl.debug_barrier()
    tl.store(out + rows, (y + held).to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def conv_kernel(
    x,
    norm_weight,
    w,
    conv_weight,
    past,
    out,
    eps,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
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
    valid = rows < D
    taps = conv_weight + rows * KERNEL
    last_tap = tl.load(taps + KERNEL - 1, mask=valid, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK_D,), tl.float32)
    for j in tl.static_range(0, KERNEL - 1):
        older = tl.load(past + j * D + rows, mask=valid, other=0.0)
        y += older.to(tl.float32) * tl.load(taps + j, mask=valid, other=0.0).to(tl.float32)
        if j > 0:
            tl.debug_barrier()
            tl.store(past + (j - 1) * D + rows, older, mask=valid)
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
        value = tl.load(x + k, mask=k < D, other=0.0).to(tl.float32)
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
    y += z.to(tl.float32) * last_tap
    tl.debug_barrier()
    tl.store(past + (KERNEL - 2) * D + rows, z.to(past.dtype.element_ty), mask=valid)
    tl.store(out + rows, (c * y).to(dtype), mask=valid)


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
    y = gate * tl.sigmoid(gate) * (tl.sum(acc_up, 1) * scale)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < F)


@triton.jit
def ranked_experts(logits, bias, E: tl.constexpr, E_PAD: tl.constexpr):
    """Score of each expert and its place in the order of ``score + bias`` (ties: lower index).

    Ranks come from all pairwise comparisons: two reductions instead of one per chosen expert.
    """
    e = tl.arange(0, E_PAD)
    score = tl.sigmoid(tl.load(logits + e, mask=e < E, other=0.0).to(tl.float32))
    score = score.to(logits.dtype.element_ty).to(tl.float32)
    key = tl.where(e < E, score + tl.load(bias + e, mask=e < E, other=0.0), float("-inf"))
    other = tl.sigmoid(tl.load(logits + e, mask=e < E, other=0.0).to(tl.float32))
    other = other.to(logits.dtype.element_ty).to(tl.float32)
    other = tl.where(e < E, other + tl.load(bias + e, mask=e < E, other=0.0), float("-inf"))
    ahead = (other[None, :] > key[:, None]) | (
        (other[None, :] == key[:, None]) & (e[None, :] < e[:, None])
    )
    return score, tl.sum(ahead.to(tl.int32), 1)


@triton.jit
def experts_up_kernel(
    x,
    norm_weight,
    logits,
    bias,
    w,
    out,
    eps,
    K: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """`gate_up_kernel` of the expert in place ``program_id(1)`` of the router's order.

    Takes whole rows: nothing is known of the weights before the router's order is, so all else
    is loaded and reduced first.
    """
    cols = tl.arange(0, BLOCK_K)
    scales = tl.load(norm_weight + cols, mask=cols < K, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    value = tl.load(x + cols, mask=cols < K, other=0.0).to(tl.float32)
    _, rank = ranked_experts(logits, bias, E, E_PAD)
    slot = tl.program_id(1)
    expert = tl.sum(tl.where(rank == slot, tl.arange(0, E_PAD), 0), 0).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    w_gate = w + expert * (2 * F * K) + rows[:, None] * K + cols[None, :]
    inside = (rows < F)[:, None] & (cols < K)[None, :]
    tile_gate = tl.load(w_gate, mask=inside, other=0.0)
    tile_up = tl.load(w_gate + F * K, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
    value = (value * scales)[None, :]
    gate = tl.sum(tile_gate.to(tl.float32) * value, 1) * scale
    up = tl.sum(tile_up.to(tl.float32) * value, 1) * scale
    if PDL:
        gdc_launch_dependents()
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + slot * F + rows, y.to(out.dtype.element_ty), mask=rows < F)


@triton.jit
def experts_down_kernel(
    hidden,
    logits,
    bias,
    w,
    out,
    routed_scale,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
):
    """``out[d] += sum_k weight_k * w[expert_k, d] . hidden[k]`` for BLOCK_D outputs.

    Reads the router's logits before `wait`: `experts_up_kernel`, which runs between, lets this one
    start only after its own wait for the router.
    """
    score, rank = ranked_experts(logits, bias, E, E_PAD)
    total = routed_scale
    if NORMALIZE:
        total = routed_scale / (tl.sum(tl.where(rank < TOP_K, score, 0.0), 0) + 1e-6)
    rows = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    cols = tl.arange(0, BLOCK_F)
    inside = (rows < D)[:, None] & (cols < F)[None, :]
    at = rows[:, None] * F + cols[None, :]
    first = tl.sum(tl.where(rank == 0, tl.arange(0, E_PAD), 0), 0).to(tl.int64)
    tile = tl.load(w + first * (D * F) + at, mask=inside, other=0.0)
    if PDL:
        gdc_wait()
    held = tl.load(out + rows, mask=rows < D, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_D, BLOCK_F), tl.float32)
    for slot in tl.static_range(0, TOP_K):
        expert = tl.sum(tl.where(rank == slot, tl.arange(0, E_PAD), 0), 0).to(tl.int64)
        weight = tl.sum(tl.where(rank == slot, score, 0.0), 0) * total
        for start in tl.static_range(0, F, BLOCK_F):
            f = start + cols
            if slot + start > 0:
                inside = (rows < D)[:, None] & (f < F)[None, :]
                tile = tl.load(w + expert * (D * F) + at + start, mask=inside, other=0.0)
            value = tl.load(hidden + slot * F + f, mask=f < F, other=0.0).to(tl.float32)
            acc += tile.to(tl.float32) * (value * weight)[None, :]
    if PDL:
        gdc_launch_dependents()
    y = tl.sum(acc, 1) + held
    tl.debug_barrier()
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < D)


# --- launching --------------------------------------------------------------------------------

TILE = 2048
"""Weights a program reads in one go along the input width."""


def tile_width(width: int) -> int:
    """Columns per tile: the whole row where it fits."""
    padded: int = triton.next_power_of_2(width)
    return min(padded, TILE)


def linear_block(num_rows: int, width: int) -> tuple[int, int]:
    """Rows and warps a program that measured fastest on an H100 (``benchmarks/gpu_kernels.py``)."""
    if num_rows <= 256:
        return 1, 4
    if num_rows >= 32768:
        return 2, 4
    if width > TILE:
        return 8, 4
    return (4, 8) if num_rows <= TILE else (4, 4)


def linear(
    x_K: Tensor,
    w_NK: Tensor,
    out_N: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    residual: bool = False,
    block: int | None = None,
    warps: int | None = None,
    pdl: bool = False,
) -> Tensor:
    """``out = w norm(x)``, or ``out += ...`` with `residual`. Returns `out_N`."""
    num_rows, width = w_NK.shape
    best = linear_block(num_rows, width)
    block, warps = block or best[0], warps or best[1]
    weight, eps = norm or (x_K, 0.0)
    linear_kernel[(triton.cdiv(num_rows, block),)](
        x_K, weight, w_NK, out_N, eps, width, num_rows, norm is not None, residual,
        block, tile_width(width), pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_N


def conv(
    x_D: Tensor,
    norm: tuple[Tensor, float],
    w: Tensor,
    conv_weight_DK: Tensor,
    past_LD: Tensor,
    out_D: Tensor,
    *,
    block: int = 4,
    warps: int = 8,
    pdl: bool = False,
) -> Tensor:
    """``c * conv(b * u)`` with ``(b, c, u) = w norm(x)``; advances `past_LD`. Returns `out_D`."""
    width, kernel = conv_weight_DK.shape
    conv_kernel[(triton.cdiv(width, block),)](
        x_D, norm[0], w, conv_weight_DK, past_LD, out_D, norm[1], width, kernel,
        block, tile_width(width), pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_D


def gate_up(
    x_K: Tensor,
    norm: tuple[Tensor, float],
    w: Tensor,
    out_F: Tensor,
    *,
    block: int = 4,
    warps: int = 8,
    pdl: bool = False,
) -> Tensor:
    """Hidden layer of a SwiGLU whose gate and up rows are stacked in `w`. Returns `out_F`."""
    hidden, width = out_F.shape[0], w.shape[1]
    gate_up_kernel[(triton.cdiv(hidden, block),)](
        x_K, norm[0], w, out_F, norm[1], width, hidden,
        block, tile_width(width), pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_F


def experts_up(
    x_D: Tensor,
    norm: tuple[Tensor, float],
    logits_E: Tensor,
    bias_E: Tensor,
    w: Tensor,
    out_KF: Tensor,
    *,
    block: int = 2,
    warps: int = 2,
    pdl: bool = False,
) -> Tensor:
    """Hidden layers of the experts that the router's logits choose. Returns `out_KF`."""
    top_k, hidden = out_KF.shape
    num_experts, _, width = w.shape
    experts_up_kernel[(triton.cdiv(hidden, block), top_k)](
        x_D, norm[0], logits_E, bias_E, w, out_KF, norm[1], width, hidden, num_experts,
        triton.next_power_of_2(num_experts), block, triton.next_power_of_2(width), pdl,
        num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_KF


def experts_down(
    hidden_KF: Tensor,
    logits_E: Tensor,
    bias_E: Tensor,
    w: Tensor,
    out_D: Tensor,
    *,
    normalize: bool,
    routed_scale: float,
    block: int = 8,
    warps: int = 4,
    depth: int = 512,
    pdl: bool = False,
) -> Tensor:
    """Adds the chosen experts' weighted outputs to `out_D`, which it returns."""
    top_k, hidden = hidden_KF.shape
    num_experts, width, _ = w.shape
    experts_down_kernel[(triton.cdiv(width, block),)](
        hidden_KF, logits_E, bias_E, w, out_D, routed_scale, width, hidden, num_experts,
        triton.next_power_of_2(num_experts), top_k, normalize,
        block, depth, pdl, num_warps=warps, launch_pdl=pdl,
    )  # fmt: skip
    return out_D
