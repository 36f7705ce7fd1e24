"""Gradients of the delta rule within each chunk, given those of its values and end state.

With ``r = beta v - (beta k e^b) S`` and ``v' = A r``: ``dr = A^T dv'`` and, since A inverts
``I + L``, ``dL = -dr v'^T`` below the diagonal. All else is the chain rule through L, r and
``S_next = e^last S + (k e^(last - b))^T v'``. The chain passes through memory once: products that
do not depend on each other spread over more warps, each with fewer registers.

Imported only where Triton is installed. Shape suffixes and halving: as in `ops.gpu.delta`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from archloop.blocks.ops.gpu.delta_tiles import (
    CHUNK,
    LEVELS,
    in_place,
    joins_halves,
    level_decay,
    padded_width,
    widths,
)
from archloop.blocks.ops.gpu.lengths import any_length


@any_length("beta_b")
def _system_gradient_kernel(
    v_ptr, beta_ptr, a_ptr, values_ptr, total_ptr, lower_ptr, dv_ptr, dbeta_ptr,
    time, num_chunks, heads, v_b, v_n, v_t, beta_b, beta_n, beta_t, dv_b, dv_n, dv_t,
    V: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of values, of L, and of beta by the values; dr takes the place of dv'."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, own = head // heads, head % heads
    i = tl.arange(0, C)
    row, col = i[:, None], i[None, :]
    start = (chunk * C).to(tl.int64)
    i_in = i < time - chunk * C
    tile = tl.program_id(0).to(tl.int64) * C * C + row * C + col
    a = tl.load(a_ptr + tile)
    beta_ptr += batch * beta_b + own * beta_n + start * beta_t
    beta = tl.load(beta_ptr + i * beta_t, mask=i_in, other=0.0).to(tl.float32)
    v_ptr += batch * v_b + own * v_n + start * v_t
    dv_ptr += batch * dv_b + own * dv_n + start * dv_t
    values_ptr += (head * time + start) * V
    total_ptr += (head * time + start) * V
    dlower = tl.zeros([C, C], dtype=tl.float32)
    dbeta = tl.zeros([C], dtype=tl.float32)
    for first in range(0, V, BLOCK_V):
        c = first + tl.arange(0, BLOCK_V)
        at, mask = i[:, None] * V + c[None, :], i_in[:, None] & (c < V)[None, :]
        total = tl.load(total_ptr + at, mask=mask, other=0.0)
        dr = tl.dot(tl.trans(a), total, input_precision=PRECISION)
        v = tl.load(v_ptr + i[:, None] * v_t + c[None, :], mask=mask, other=0.0)
        dbeta += tl.sum(dr * v, 1)
        dv = (dr * beta[:, None]).to(dv_ptr.dtype.element_ty)
        tl.store(dv_ptr + i[:, None] * dv_t + c[None, :], dv, mask=mask)
        dr = dr.to(a.dtype)
        tl.store(total_ptr + at, dr, mask=mask)
        values = tl.load(values_ptr + at, mask=mask, other=0.0)
        dlower -= tl.dot(dr, tl.trans(values), input_precision=PRECISION)
    tl.store(lower_ptr + tile, tl.where(row > col, dlower, 0.0).to(lower_ptr.dtype.element_ty))
    tl.store(dbeta_ptr + head * time + start + i, dbeta, mask=i_in)


@triton.jit
def _through_question(
    dr_ptr, states_ptr, i, i_in, j, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of ``beta k e^b``, what the state before the chunk is asked (C, K)."""
    dasked = tl.zeros([C, BLOCK_K], dtype=tl.float32)
    for first in range(0, V, BLOCK_V):
        c = first + tl.arange(0, BLOCK_V)
        at, mask = i[:, None] * V + c[None, :], i_in[:, None] & (c < V)[None, :]
        dr = tl.load(dr_ptr + at, mask=mask, other=0.0)
        held, held_in = j[:, None] * V + c[None, :], (j < K)[:, None] & (c < V)[None, :]
        state = tl.load(states_ptr + held, mask=held_in, other=0.0)
        dasked -= tl.dot(dr, tl.trans(state), input_precision=PRECISION)
    return dasked


@triton.jit
def _through_writes(
    values_ptr, states_ptr, after_ptr, i, i_in, j, K: tl.constexpr, V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys decayed to the chunk's end (C, K) and of the chunk's decay (K)."""
    dkeys = tl.zeros([C, BLOCK_K], dtype=tl.float32)
    ddecay = tl.zeros([BLOCK_K], dtype=tl.float32)
    for first in range(0, V, BLOCK_V):
        c = first + tl.arange(0, BLOCK_V)
        at, mask = i[:, None] * V + c[None, :], i_in[:, None] & (c < V)[None, :]
        values = tl.load(values_ptr + at, mask=mask, other=0.0)
        held, held_in = j[:, None] * V + c[None, :], (j < K)[:, None] & (c < V)[None, :]
        after = tl.load(after_ptr + held, mask=held_in, other=0.0)
        dkeys += tl.dot(values, tl.trans(after), input_precision=PRECISION)
        state = tl.load(states_ptr + held, mask=held_in, other=0.0)
        ddecay += tl.sum(state.to(tl.float32) * after.to(tl.float32), 1)
    return dkeys, ddecay


@any_length("beta_b", "dg_b")
def _scalar_kernel(
    k_ptr, beta_ptr, b_ptr, values_ptr, states_ptr, dr_ptr, after_ptr, lower_ptr,
    dk_ptr, dbeta_ptr, dg_ptr, time, num_chunks, heads, sharing,
    k_b, k_n, k_t, beta_b, beta_n, beta_t, dk_b, dk_n, dk_t, dg_b, dg_n, dg_t,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, log-decays and beta where a head has one decay."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, own = head // heads, head % heads
    i, j = tl.arange(0, C), tl.arange(0, BLOCK_K)
    row, col = i[:, None], i[None, :]
    start = (chunk * C).to(tl.int64)
    length = tl.minimum(time - chunk * C, C)
    i_in, mask = i < length, (i < length)[:, None] & (j < K)[None, :]
    tile = tl.program_id(0).to(tl.int64)
    k_ptr += batch * k_b + own // sharing * k_n + start * k_t
    k = tl.load(k_ptr + i[:, None] * k_t + j[None, :], mask=mask, other=0.0)
    beta_ptr += batch * beta_b + own * beta_n + start * beta_t
    beta = tl.load(beta_ptr + i * beta_t, mask=i_in, other=0.0).to(tl.float32)
    b_ptr += head * time + start
    b = tl.load(b_ptr + i, mask=i_in, other=0.0)
    last = tl.load(b_ptr + length - 1)
    dlower = tl.load(lower_ptr + tile * C * C + row * C + col).to(tl.float32)
    dlower *= tl.exp(tl.minimum(b[:, None] - b[None, :], 0.0))
    weighted = dlower * tl.dot(k, tl.trans(k), input_precision=PRECISION)
    dbeta_ptr += head * time + start
    dbeta = tl.load(dbeta_ptr + i, mask=i_in, other=0.0) + tl.sum(weighted, 1)
    weighted *= beta[:, None]
    db = tl.sum(weighted, 1) - tl.sum(weighted, 0)
    dlower *= beta[:, None]
    both = (dlower + tl.trans(dlower)).to(k.dtype)
    dk = tl.dot(both, k, input_precision=PRECISION)
    values_ptr += (head * time + start) * V
    dr_ptr += (head * time + start) * V
    states_ptr += tile * K * V
    part = tl.exp(b)[:, None] * _through_question(
        dr_ptr, states_ptr, i, i_in, j, K, V, BLOCK_K, BLOCK_V, C, PRECISION
    )
    by_key = tl.sum(part * k, 1)
    dbeta += by_key
    db += by_key * beta
    dk += part * beta[:, None]
    tl.store(dbeta_ptr + i, dbeta, mask=i_in)
    part, ddecay = _through_writes(
        values_ptr, states_ptr, after_ptr + tile * K * V, i, i_in, j,
        K, V, BLOCK_K, BLOCK_V, C, PRECISION,
    )  # fmt: skip
    part *= tl.exp(tl.minimum(last - b, 0.0))[:, None]
    dk += part
    by_key = tl.sum(part * k, 1)
    # The last key of a chunk does not decay on its way to the chunk's end. Its term is left out,
    # not subtracted: a subtraction would leave a rounding error where it should leave 0.
    by_key = tl.where(i == length - 1, 0.0, by_key)
    dlast = tl.sum(by_key, 0) + tl.sum(ddecay, 0) * tl.exp(last)
    db += tl.where(i == length - 1, dlast, -by_key)
    dg_ptr += batch * dg_b + own * dg_n + start * dg_t
    tl.store(dg_ptr + i * dg_t, tl.cumsum(db, 0, reverse=True), mask=i_in)
    dk_ptr += batch * dk_b + own * dk_n + start * dk_t
    dk = dk.to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + i[:, None] * dk_t + j[None, :], dk, mask=mask)


@any_length("beta_b")
def _vector_kernel(
    k_ptr, beta_ptr, b_ptr, values_ptr, states_ptr, dr_ptr, after_ptr, lower_ptr,
    dk_ptr, dbeta_ptr, dg_ptr, time, num_chunks, heads, sharing,
    k_b, k_n, k_t, beta_b, beta_n, beta_t, dk_b, dk_n, dk_t, dg_b, dg_n, dg_t,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    C: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, log-decays and beta where each key channel has a decay."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, own = head // heads, head % heads
    i, j = tl.arange(0, C), tl.arange(0, BLOCK_K)
    row, col = i[:, None], i[None, :]
    start = (chunk * C).to(tl.int64)
    length = tl.minimum(time - chunk * C, C)
    i_in, j_in = i < length, j < K
    mask = i_in[:, None] & j_in[None, :]
    tile = tl.program_id(0).to(tl.int64)
    k_ptr += batch * k_b + own // sharing * k_n + start * k_t
    k = tl.load(k_ptr + i[:, None] * k_t + j[None, :], mask=mask, other=0.0)
    beta_ptr += batch * beta_b + own * beta_n + start * beta_t
    beta = tl.load(beta_ptr + i * beta_t, mask=i_in, other=0.0).to(tl.float32)
    b_ptr += (head * time + start) * K
    b = in_place(tl.load(b_ptr + i[:, None] * K + j[None, :], mask=mask, other=0.0))
    dlower = tl.load(lower_ptr + tile * C * C + row * C + col).to(tl.float32)
    dbeta_ptr += head * time + start
    dbeta = tl.load(dbeta_ptr + i, mask=i_in, other=0.0)
    dk = tl.zeros([C, BLOCK_K], dtype=tl.float32)
    db = tl.zeros([C, BLOCK_K], dtype=tl.float32)
    for level in range(LEVELS):
        decay = level_decay(b, b_ptr, i, j, length, level, K)
        near = (k * decay).to(k.dtype)
        below = tl.where(joins_halves(row, col, level), dlower, 0.0)
        both = (below + tl.trans(below * beta[:, None])).to(k.dtype)
        part = tl.dot(both, near, input_precision=PRECISION) * decay
        right = ((i >> level) & 1) == 1
        dbeta += tl.where(right, tl.sum(part * k, 1), 0.0)
        part *= tl.where(right, beta, 1.0)[:, None]
        dk += part
        db += part * k * tl.where(right, 1.0, -1.0)[:, None]
    values_ptr += (head * time + start) * V
    dr_ptr += (head * time + start) * V
    states_ptr += tile * K * V
    part = tl.exp(b) * _through_question(
        dr_ptr, states_ptr, i, i_in, j, K, V, BLOCK_K, BLOCK_V, C, PRECISION
    )
    dbeta += tl.sum(part * k, 1)
    tl.store(dbeta_ptr + i, dbeta, mask=i_in)
    part *= beta[:, None]
    dk += part
    db += part * k
    part, ddecay = _through_writes(
        values_ptr, states_ptr, after_ptr + tile * K * V, i, i_in, j,
        K, V, BLOCK_K, BLOCK_V, C, PRECISION,
    )  # fmt: skip
    last = tl.load(b_ptr + (length - 1) * K + j, mask=j_in, other=0.0)
    part *= tl.exp(tl.minimum(last[None, :] - b, 0.0))
    dk_ptr += batch * dk_b + own * dk_n + start * dk_t
    dk = (dk + part).to(dk_ptr.dtype.element_ty)
    tl.store(dk_ptr + i[:, None] * dk_t + j[None, :], dk, mask=mask)
    part = tl.where((i == length - 1)[:, None], 0.0, part * k)
    dlast = tl.sum(part, 0) + ddecay * tl.exp(last)
    db += tl.where((i == length - 1)[:, None], dlast[None, :], -part)
    dg_ptr += batch * dg_b + own * dg_n + start * dg_t
    tl.store(dg_ptr + i[:, None] * dg_t + j[None, :], tl.cumsum(db, 0, reverse=True), mask=mask)


def chunk_gradients(
    k_BGTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, b_BNTK: Tensor, a_BNnCC: Tensor,
    values_BNTV: Tensor, states_BNnKV: Tensor, total_BNTV: Tensor, after_BNnKV: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of keys, values, write strengths and log-decays.

    Args:
        k_BGTK: keys.
        v_BNTV: values.
        beta_BNT: write strengths.
        b_BNTK: cumulative log-decays in each chunk.
        a_BNnCC: inverses of the chunks' systems.
        values_BNTV: corrected values.
        states_BNnKV: state before each chunk.
        total_BNTV: gradients of the corrected values, all uses counted; overwritten.
        after_BNnKV: gradients of the state after each chunk.
    """
    (batch, heads, time, width), groups = v_BNTV.shape, k_BGTK.shape[1]
    dk = _time_major(k_BGTK, heads)
    dv, dg = _time_major(v_BNTV, heads), _time_major(b_BNTK, heads)
    dbeta = torch.empty(beta_BNT.shape, dtype=torch.float32, device=k_BGTK.device)
    dlower = torch.empty_like(a_BNnCC)
    num_chunks = triton.cdiv(time, CHUNK)
    grid, sizes = (batch * heads * num_chunks,), (time, num_chunks, heads)
    block = {"V": width, "BLOCK_V": min(padded_width(width), 64), "num_stages": 1}
    _system_gradient_kernel[grid](
        v_BNTV, beta_BNT, a_BNnCC, values_BNTV, total_BNTV, dlower, dv, dbeta, *sizes,
        *v_BNTV.stride()[:3], *beta_BNT.stride(), *dv.stride()[:3],
        C=CHUNK, PRECISION="tf32x3", num_warps=4, **block,
    )  # fmt: skip
    kernel, warps = (_vector_kernel, 8) if b_BNTK.shape[3] > 1 else (_scalar_kernel, 4)
    kernel[grid](
        k_BGTK, beta_BNT, b_BNTK, values_BNTV, states_BNnKV, total_BNTV, after_BNnKV, dlower,
        dk, dbeta, dg, *sizes, heads // groups,
        *k_BGTK.stride()[:3], *beta_BNT.stride(), *dk.stride()[:3], *dg.stride()[:3],
        LEVELS=LEVELS, num_warps=warps, **widths(k_BGTK), **block,
    )  # fmt: skip
    if groups < heads:
        dk = dk.unflatten(1, (groups, -1)).sum(2)
    return dk, dv, dbeta.to(beta_BNT.dtype), dg


def _time_major(like_BNTK: Tensor, heads: int) -> Tensor:
    """An empty tensor that lies (B, T, N, K), as the projections' outputs do."""
    batch, _, time, width = like_BNTK.shape
    return like_BNTK.new_empty(batch, time, heads, width).transpose(1, 2)
