"""One token through routed experts: matrix-vector products of the few that its router chooses.

As `gemv`, whose rules for overlapping kernels hold here too; both kernels find the chosen experts
from the router's logits themselves.

Shape suffixes: D model width, F hidden width, E experts, K chosen ones (in kernels: input width).
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


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
