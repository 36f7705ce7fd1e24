"""Many tokens through sparse experts: routing, grouped matrix products, weighted sum.

Tokens are binned by expert on the device, without a sort and without the host learning any count:
each (token, choice) pair takes the next free place in its expert's bin. The products then run over
tiles of up to BLOCK_M pairs of one expert; a program finds its tile from the bins' counts alone,
and tiles that do not exist return at once, so that one launch, captured in a graph, serves any
routing.
A pair's result does not depend on its place in a bin, so outputs are the same from run to run.

Shape suffixes: X tokens, D model width, E experts, K experts per token, F expert width, P pairs.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def route_kernel(
    logits,
    bias,
    weights,
    counts,
    bins,
    num_tokens,
    routed_scale,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose K experts for BLOCK tokens and put each (token, choice) pair into its bin."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, E_PAD)[None, :]
    real = (token < num_tokens)[:, None] & (e < E)
    score = tl.load(logits + token[:, None].to(tl.int64) * E + e, mask=real, other=0.0)
    score = tl.sigmoid(score.to(tl.float32)).to(logits.dtype.element_ty).to(tl.float32)
    key = tl.where(e < E, score + tl.load(bias + e, mask=e < E, other=0.0), float("-inf"))
    chosen = tl.zeros((BLOCK, E_PAD), tl.int1)
    for _ in tl.static_range(0, K):
        best = tl.argmax(tl.where(chosen, float("-inf"), key), 1)
        chosen = chosen | (e == best[:, None])
    total = tl.full((BLOCK,), 1.0, tl.float32)
    if NORMALIZE:
        total = tl.sum(tl.where(chosen, score, 0.0), 1) + 1e-6
    left = chosen
    for k in tl.static_range(0, K):
        best = tl.argmax(tl.where(left, key, float("-inf")), 1)
        here = e == best[:, None]
        left = left & (e != best[:, None])
        weight = tl.sum(tl.where(here, score, 0.0), 1) / total * routed_scale
        pair = token * K + k
        tl.store(weights + pair, weight, mask=token < num_tokens)
        place = tl.atomic_add(counts + best, 1, mask=token < num_tokens, sem="relaxed")
        at = best.to(tl.int64) * num_tokens + place
        tl.store(bins + at, pair, mask=token < num_tokens)


@triton.jit
def tile_of(counts, tile, E: tl.constexpr, E_PAD: tl.constexpr, BLOCK_M: tl.constexpr):
    """Expert of a tile, its first place in the bin, the bin's count and pairs in earlier bins."""
    e = tl.arange(0, E_PAD)
    count = tl.load(counts + e, mask=e < E, other=0)
    tiles = (count + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles, 0)
    expert = tl.sum((last <= tile).to(tl.int32), 0)
    before = tl.sum(tl.where(e < expert, tiles, 0), 0)
    offset = tl.sum(tl.where(e < expert, count, 0), 0)
    size = tl.sum(tl.where(e == expert, count, 0), 0)
    return expert, (tile - before) * BLOCK_M, size, offset


@triton.jit
def gate_up_tile(
    x,
    w,
    hidden,
    bins,
    num_tokens,
    expert,
    first,
    size,
    offset,
    n,
    D: tl.constexpr,
    F: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """``silu(gate) * up`` of BLOCK_M pairs and BLOCK_N hidden units of one expert."""
    m = first + tl.arange(0, BLOCK_M)
    pair = tl.load(bins + expert.to(tl.int64) * num_tokens + m, mask=m < size, other=0)
    k = tl.arange(0, BLOCK_K)
    x_at = x + (pair // K).to(tl.int64)[:, None] * D + k[None, :]
    f = n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = expert * (2 * F) + n * BLOCK_N
    w_at = w
    if not TMA:
        w_at = w + (expert.to(tl.int64) * (2 * F) + f)[:, None] * D + k[None, :]
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    gate = tl.zeros(shape, tl.float32)
    up = tl.zeros(shape, tl.float32)
    for start in range(0, D, BLOCK_K):
        value = tl.load(x_at + start)
        if TMA:
            w_gate = w.load([row, start])
            w_up = w.load([row + F, start])
        else:
            w_gate = tl.load(w_at + start, mask=(f < F)[:, None], other=0.0)
            w_up = tl.load(w_at + F * D + start, mask=(f < F)[:, None], other=0.0)
        if SWAP:
            gate = tl.dot(w_gate, tl.trans(value), gate)
            up = tl.dot(w_up, tl.trans(value), up)
        else:
            gate = tl.dot(value, tl.trans(w_gate), gate)
            up = tl.dot(value, tl.trans(w_up), up)
    y = (gate * tl.sigmoid(gate) * up).to(hidden.dtype.element_ty)
    if SWAP:
        y = tl.trans(y)
    out_at = hidden + (offset + m).to(tl.int64)[:, None] * F + f[None, :]
    tl.store(out_at, y, mask=(m < size)[:, None] & (f < F)[None, :])


@triton.jit
def gate_up_kernel(
    x,
    w,
    hidden,
    counts,
    bins,
    num_tokens,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """One tile of the gate and up product; at most half a tile of pairs takes half the work."""
    num_n: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    n = tl.program_id(0) % num_n
    tile = tl.program_id(0) // num_n
    expert, first, size, offset = tile_of(counts, tile, E, E_PAD, BLOCK_M)
    if expert >= E:
        return
    if (BLOCK_M >= 128) & (size - first <= BLOCK_M // 2):
        gate_up_tile(
            x, w, hidden, bins, num_tokens, expert, first, size, offset, n,
            D, F, K, BLOCK_M // 2, BLOCK_N, BLOCK_K, SWAP, TMA,
        )  # fmt: skip
    else:
        gate_up_tile(
            x, w, hidden, bins, num_tokens, expert, first, size, offset, n,
            D, F, K, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA,
        )  # fmt: skip


@triton.jit
def down_tile(
    hidden,
    w,
    weights,
    out,
    bins,
    num_tokens,
    expert,
    first,
    size,
    offset,
    n,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """Weighted outputs of BLOCK_M pairs of one expert, each to its pair's own row."""
    m = first + tl.arange(0, BLOCK_M)
    pair = tl.load(bins + expert.to(tl.int64) * num_tokens + m, mask=m < size, other=0)
    weight = tl.load(weights + pair, mask=m < size, other=0.0)
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the bin's last pair are read from its last pair and never stored.
    held = (offset + tl.minimum(m, size - 1)).to(tl.int64)
    x_at = hidden + held[:, None] * F + k[None, :]
    d = n * BLOCK_N + tl.arange(0, BLOCK_N)
    w_at = w
    if not TMA:
        w_at = w + (expert.to(tl.int64) * D + d)[:, None] * F + k[None, :]
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    acc = tl.zeros(shape, tl.float32)
    for start in range(0, F, BLOCK_K):
        value = tl.load(x_at + start)
        if TMA:
            tile_w = w.load([expert * D + n * BLOCK_N, start])
        else:
            tile_w = tl.load(w_at + start, mask=(d < D)[:, None], other=0.0)
        if SWAP:  # noqa: SIM108 -- Triton resolves only statements at compile time
            acc = tl.dot(tile_w, tl.trans(value), acc)
        else:
            acc = tl.dot(value, tl.trans(tile_w), acc)
    if SWAP:
        acc = tl.trans(acc)
    y = (acc * weight[:, None]).to(out.dtype.element_ty)
    out_at = out + pair.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(out_at, y, mask=(m < size)[:, None] & (d < D)[None, :])


@triton.jit
def down_kernel(
    hidden,
    w,
    weights,
    out,
    counts,
    bins,
    num_tokens,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """One tile of the down product, as `gate_up_kernel`."""
    num_n: tl.constexpr = (D + BLOCK_N - 1) // BLOCK_N
    n = tl.program_id(0) % num_n
    tile = tl.program_id(0) // num_n
    expert, first, size, offset = tile_of(counts, tile, E, E_PAD, BLOCK_M)
    if expert >= E:
        return
    if (BLOCK_M >= 128) & (size - first <= BLOCK_M // 2):
        down_tile(
            hidden, w, weights, out, bins, num_tokens, expert, first, size, offset, n,
            D, F, BLOCK_M // 2, BLOCK_N, BLOCK_K, SWAP, TMA,
        )  # fmt: skip
    else:
        down_tile(
            hidden, w, weights, out, bins, num_tokens, expert, first, size, offset, n,
            D, F, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA,
        )  # fmt: skip


@triton.jit
def join_kernel(x, y, norm_weight, out, eps, D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """``x += sum_k y[k]`` for one token, and the norm of the result for the next block."""
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(0, K):
        total += tl.load(y + (token * K + k) * D + d, mask=d < D, other=0.0).to(tl.float32)
    total += tl.load(x + token * D + d, mask=d < D, other=0.0).to(tl.float32)
    rounded = total.to(x.dtype.element_ty)
    tl.store(x + token * D + d, rounded, mask=d < D)
    total = rounded.to(tl.float32)
    total *= tl.rsqrt(tl.sum(total * total, 0) / D + eps)
    total *= tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + token * D + d, total.to(out.dtype.element_ty), mask=d < D)


# --- launching --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """Block sizes of a grouped product.

    Attributes:
        pairs: (token, choice) pairs per tile.
        rows: rows of an expert's matrix per tile; in the gate and up product, rows of each.
        depth: input width taken per iteration.
        swap: multiply weights by tokens instead of tokens by weights: with few tokens the weights
            then fill the tensor cores' long side.
        tma: fetch weight tiles through the copy engine.
    """

    pairs: int
    rows: int
    depth: int
    warps: int
    stages: int
    swap: bool = False
    tma: bool = True


def tilings(num_pairs: int, num_experts: int, width: int) -> tuple[Tiling, Tiling]:
    """Tilings of the gate-and-up and the down product, by the pairs that an expert will get.

    The width of the stream is whole tiles of the down product.
    """
    each = num_pairs / num_experts
    if each <= 12:
        return Tiling(16, 64, 128, 4, 3, swap=True), Tiling(16, 64, 128, 4, 4, swap=True)
    if each <= 24:
        return Tiling(32, 64, 128, 4, 3, swap=True), Tiling(32, 64, 128, 4, 4, swap=True)
    if each <= 128 or width % 256:
        return Tiling(128, 128, 64, 8, 3), Tiling(128, 128, 64, 8, 3)
    return Tiling(128, 128, 64, 8, 4), Tiling(128, 256, 64, 8, 4)


def route(
    logits_XE: Tensor,
    bias_E: Tensor,
    counts_E: Tensor,
    top_k: int,
    *,
    normalize: bool,
    routed_scale: float,
) -> tuple[Tensor, Tensor]:
    """Choose experts as `MoE.route` does and bin the pairs.

    Args:
        logits_XE: router logits.
        bias_E: selection bias, float32.
        counts_E: int32 zeros; afterwards the pairs of each expert.
        top_k: experts per token.
        normalize: divide a token's weights by their sum.
        routed_scale: factor on the weights.

    Returns:
        Weights of the pairs (X K), float32, and bins (E, X) of pair numbers; a bin is filled up to
        its count.
    """
    num_tokens, num_experts = logits_XE.shape
    weights_P = logits_XE.new_empty(num_tokens * top_k, dtype=torch.float32)
    bins_EX = logits_XE.new_empty(num_experts, num_tokens, dtype=torch.int32)
    block = 4 if num_tokens <= 1024 else 32
    route_kernel[(triton.cdiv(num_tokens, block),)](
        logits_XE, bias_E, weights_P, counts_E, bins_EX, num_tokens, routed_scale, num_experts,
        triton.next_power_of_2(num_experts), top_k, normalize, block, num_warps=4,
    )  # fmt: skip
    return weights_P, bins_EX


def _grid(num_pairs: int, num_experts: int, tiling: Tiling, width: int) -> tuple[int]:
    """Most tiles that any routing can need, times the tiles across the output width."""
    tiles = min(num_pairs, num_experts + num_pairs // tiling.pairs)
    return (tiles * triton.cdiv(width, tiling.rows),)


def _weights(w_ENK: Tensor, tiling: Tiling) -> Tensor | TensorDescriptor:
    if not tiling.tma:
        return w_ENK
    return TensorDescriptor.from_tensor(w_ENK.flatten(0, 1), [tiling.rows, tiling.depth])


def gate_up(
    x_XD: Tensor, w_EFD: Tensor, bins_EX: Tensor, counts_E: Tensor, top_k: int, tiling: Tiling
) -> Tensor:
    """Hidden layer of every pair, binned order, (P, F). `w_EFD` holds gate rows, then up rows."""
    (num_tokens, width), (num_experts, hidden) = x_XD.shape, w_EFD.shape[:2]
    hidden //= 2
    assert hidden % tiling.rows == 0 or not tiling.tma, f"{hidden=} in tiles of {tiling.rows}"
    out_PF = x_XD.new_empty(num_tokens * top_k, hidden)
    gate_up_kernel[_grid(num_tokens * top_k, num_experts, tiling, hidden)](
        x_XD, _weights(w_EFD, tiling), out_PF, counts_E, bins_EX, num_tokens,
        width, hidden, num_experts, triton.next_power_of_2(num_experts), top_k,
        tiling.pairs, tiling.rows, tiling.depth, tiling.swap, tiling.tma,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out_PF


def down(
    hidden_PF: Tensor,
    w_EDF: Tensor,
    weights_P: Tensor,
    bins_EX: Tensor,
    counts_E: Tensor,
    tiling: Tiling,
) -> Tensor:
    """Weighted output of every pair, in the order of the tokens, (P, D)."""
    num_experts, width, hidden = w_EDF.shape
    assert width % tiling.rows == 0 or not tiling.tma, f"{width=} in tiles of {tiling.rows}"
    out_PD = hidden_PF.new_empty(hidden_PF.shape[0], width)
    down_kernel[_grid(hidden_PF.shape[0], num_experts, tiling, width)](
        hidden_PF, _weights(w_EDF, tiling), weights_P, out_PD, counts_E, bins_EX,
        bins_EX.shape[1], width, hidden, num_experts, triton.next_power_of_2(num_experts),
        tiling.pairs, tiling.rows, tiling.depth, tiling.swap, tiling.tma,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out_PD


def experts(
    x_XD: Tensor,
    weights_P: Tensor,
    bins_EX: Tensor,
    counts_E: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    *,
    tiling: tuple[Tiling, Tiling] | None = None,
) -> Tensor:
    """Weighted output of each pair, (X, K, D): `moe.sorted_experts` before its sum."""
    num_tokens, num_pairs = x_XD.shape[0], weights_P.shape[0]
    first, second = tiling or tilings(num_pairs, *down_EDF.shape[:2])
    top_k = num_pairs // num_tokens
    hidden_PF = gate_up(x_XD, gate_up_EFD, bins_EX, counts_E, top_k, first)
    out_PD = down(hidden_PF, down_EDF, weights_P, bins_EX, counts_E, second)
    return out_PD.view(num_tokens, top_k, -1)


def join(x_XD: Tensor, y_XKD: Tensor, norm_weight_D: Tensor, eps: float) -> Tensor:
    """Adds ``sum_k y`` to `x_XD` in place; returns the norm of the result."""
    num_tokens, top_k, width = y_XKD.shape
    out_XD = torch.empty_like(x_XD)
    join_kernel[(num_tokens,)](
        x_XD, y_XKD, norm_weight_D, out_XD, eps, width, top_k, triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return out_XD
