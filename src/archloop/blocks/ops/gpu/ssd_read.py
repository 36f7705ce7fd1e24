"""The outputs of `ops.ssd` on a GPU, forward and back: a chunk as decayed attention, and its state.

Gradients of queries and keys sum over the heads of a group, so one program goes through these in
turn, and the product of queries and keys is formed once for all of them. Where GAP is 1, a token
does not read what it adds itself.

Products feed products here, so everything compiles `without_wgmma`. Imported only where Triton is
installed. Shape suffixes: as in `ops.ssd`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.carry import (
    arithmetic,
    by_token,
    decay_parts,
    decay_sums,
    dense_rows,
    gradient_parts,
    strides,
    tile,
    total,
    widest,
)
from archloop.blocks.ops.gpu.lengths import any_length
from archloop.blocks.ops.gpu.wgmma import without_wgmma


@any_length("g_b", "w_b")
def _read_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, w_ptr, states_ptr, o_ptr, num_steps, num_heads, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, o_b, o_n, o_t,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, GAP: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    value = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    g_ptr += batch * g_b + start * g_t
    w_ptr += batch * w_b + start * w_t
    here, value_in = start + step < num_steps, value < V
    v_in = here[:, None] & value_in[None, :]
    q_ptr += batch * q_b + head // SHARED * q_n + start * q_t
    k_ptr += batch * k_b + head // SHARED * k_n + start * k_t
    v_ptr += batch * v_b + head * v_n + start * v_t
    o_ptr += batch * o_b + head * o_n + start * o_t
    states_ptr += (row * num_chunks + chunk) * K * V
    v = tl.load(v_ptr + step[:, None] * v_t + value[None, :], mask=v_in, other=0.0)
    b = decay_sums(g_ptr + head * g_n + step * g_t, here)
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    o = tl.zeros([CHUNK, BLOCK_V], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        key_in = key < K
        mask = here[:, None] & key_in[None, :]
        q = tl.load(q_ptr + step[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(v.dtype)
        k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(v.dtype)
        at = key[:, None] * V + value[None, :]
        inside = key_in[:, None] & value_in[None, :]
        state = tl.load(states_ptr + at, mask=inside, other=0.0).to(v.dtype)
        scores += tl.dot(q, tl.trans(k), input_precision=PRECISION)
        o += tl.dot(q, state, input_precision=PRECISION)
    later = step[:, None] >= step[None, :] + GAP
    ratio = tl.exp(tl.where(later, b[:, None] - b[None, :], 0.0))
    if WEIGHTED:
        w = tl.load(w_ptr + head * w_n + step * w_t, mask=here, other=0.0)
        ratio *= w[None, :]
    scores = tl.where(later, scores * ratio, 0.0).to(v.dtype)
    o = o * tl.exp(b)[:, None] + tl.dot(scores, v, input_precision=PRECISION)
    o_at = step[:, None] * o_t + value[None, :]
    tl.store(o_ptr + o_at, o.to(o_ptr.dtype.element_ty), mask=v_in)


@any_length("g_b", "w_b", "dg_b", "dg_part")
def _read_queries_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, w_ptr, states_ptr, do_ptr, dq_ptr, dg_ptr, dstates_ptr,
    num_steps, num_groups, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, do_b, do_n, do_t,
    dq_b, dq_n, dq_t, dg_b, dg_n, dg_t, dg_part,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, GAP: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and states, and of the decays as far as queries feel them."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, group = row // num_groups, row % num_groups
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    g_ptr += batch * g_b + start * g_t
    w_ptr += batch * w_b + start * w_t
    key_in, here = key < K, start + step < num_steps
    mask = here[:, None] & key_in[None, :]
    dtype = v_ptr.dtype.element_ty
    q_ptr += batch * q_b + group * q_n + start * q_t
    k_ptr += batch * k_b + group * k_n + start * k_t
    dq_ptr += batch * dq_b + group * dq_n + start * dq_t
    q = tl.load(q_ptr + step[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(dtype)
    k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(dtype)
    dg_ptr += tl.program_id(1).to(tl.int64) * dg_part + batch * dg_b + start * dg_t
    before, diagonal = step[:, None] > step[None, :], step[:, None] == step[None, :]
    dq = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    for rank in range(SHARED):
        head = group * SHARED + rank
        held = ((batch * num_groups * SHARED + head) * num_chunks + chunk) * K * V
        v_head = v_ptr + batch * v_b + head * v_n + start * v_t
        do_head = do_ptr + batch * do_b + head * do_n + start * do_t
        b = decay_sums(g_ptr + head * g_n + step * g_t, here)
        grown = tl.exp(b)[:, None]
        dscores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        asked = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
        for first in range(0, V, BLOCK_V):
            value = first + tl.arange(0, BLOCK_V)
            value_in = value < V
            v_in = here[:, None] & value_in[None, :]
            at = key[:, None] * V + value[None, :]
            inside = key_in[:, None] & value_in[None, :]
            v_at = step[:, None] * v_t + value[None, :]
            do_at = step[:, None] * do_t + value[None, :]
            state = tl.load(states_ptr + held + at, mask=inside, other=0.0).to(dtype)
            v = tl.load(v_head + v_at, mask=v_in, other=0.0)
            do = tl.load(do_head + do_at, mask=v_in, other=0.0).to(dtype)
            dscores += tl.dot(do, tl.trans(v), input_precision=PRECISION)
            grows = (do.to(tl.float32) * grown).to(dtype)
            asked += tl.dot(grows, tl.trans(state), input_precision=PRECISION)
            dstate = tl.dot(tl.trans(q), grows, input_precision=PRECISION)
            tl.store(dstates_ptr + held + at, dstate.to(dstates_ptr.dtype.element_ty), mask=inside)
        ratio = tl.exp(tl.where(before, b[:, None] - b[None, :], 0.0))
        if WEIGHTED:
            w = tl.load(w_ptr + head * w_n + step * w_t, mask=here, other=0.0)
            ratio *= w[None, :]
        dscores *= ratio
        # Nothing decays between a token and itself. That pair is left out, not subtracted: a
        # subtraction would leave a rounding error where it should leave 0.
        own = tl.sum(tl.where(diagonal, dscores, 0.0), 1)
        pairs = tl.where(before, dscores, 0.0).to(dtype)
        asked += tl.dot(pairs, k, input_precision=PRECISION)
        dq += asked
        if GAP == 0:
            dq += own[:, None] * k.to(tl.float32)
        db = tl.sum(asked * q.to(tl.float32), 1)
        tl.store(dg_ptr + head * dg_n + step * dg_t, tl.cumsum(db, 0, reverse=True), mask=here)
    dq_at = step[:, None] * dq_t + key[None, :]
    tl.store(dq_ptr + dq_at, dq.to(dq_ptr.dtype.element_ty), mask=mask)


@any_length("g_b", "w_b", "dg_b", "dg_part")
def _read_keys_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, w_ptr, do_ptr, dk_ptr, dv_ptr, dg_ptr, dw_ptr,
    num_steps, num_groups, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, do_b, do_n, do_t,
    dk_b, dk_n, dk_t, dv_b, dv_n, dv_t, dg_b, dg_n, dg_t, dv_part, dg_part,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, GAP: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys, values and weights, and those of the decays completed; parts as above."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, group = row // num_groups, row % num_groups
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    g_ptr += batch * g_b + start * g_t
    w_ptr += batch * w_b + start * w_t
    key_in, here = key < K, start + step < num_steps
    mask = here[:, None] & key_in[None, :]
    dtype = v_ptr.dtype.element_ty
    q_ptr += batch * q_b + group * q_n + start * q_t
    k_ptr += batch * k_b + group * k_n + start * k_t
    dk_ptr += batch * dk_b + group * dk_n + start * dk_t
    q = tl.load(q_ptr + step[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(dtype)
    k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(dtype)
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part + batch * dv_b + start * dv_t
    part = tl.program_id(1).to(tl.int64) * dg_part + batch * dg_b + start * dg_t
    # Rows are keys here, columns the queries after them.
    product = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    later, diagonal = step[:, None] + GAP <= step[None, :], step[:, None] == step[None, :]
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    for rank in range(SHARED):
        head = group * SHARED + rank
        v_head = v_ptr + batch * v_b + head * v_n + start * v_t
        do_head = do_ptr + batch * do_b + head * do_n + start * do_t
        dv_head = dv_ptr + head * dv_n
        b = decay_sums(g_ptr + head * g_n + step * g_t, here)
        ratio = tl.exp(tl.where(later, b[None, :] - b[:, None], 0.0))
        ratio = tl.where(later, ratio, 0.0)
        weight = tl.full([CHUNK], 1.0, dtype=tl.float32)
        if WEIGHTED:
            weight = tl.load(w_ptr + head * w_n + step * w_t, mask=here, other=0.0)
        scores = (product * ratio * weight[:, None]).to(dtype)
        dscores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        for first in range(0, V, BLOCK_V):
            value = first + tl.arange(0, BLOCK_V)
            v_in = here[:, None] & (value < V)[None, :]
            v_at = step[:, None] * v_t + value[None, :]
            do_at = step[:, None] * do_t + value[None, :]
            dv_at = step[:, None] * dv_t + value[None, :]
            v = tl.load(v_head + v_at, mask=v_in, other=0.0)
            do = tl.load(do_head + do_at, mask=v_in, other=0.0).to(dtype)
            dscores += tl.dot(v, tl.trans(do), input_precision=PRECISION)
            dv = tl.dot(scores, do, input_precision=PRECISION)
            tl.store(dv_head + dv_at, dv.to(dv_ptr.dtype.element_ty), mask=v_in)
        dscores *= ratio
        dg_at = part + head * dg_n + step * dg_t
        to_scores = dscores * product
        if WEIGHTED:
            tl.store(dw_ptr + dg_at, tl.sum(to_scores, 1), mask=here)
        at_queries = tl.load(dg_ptr + dg_at, mask=here, other=0.0)
        turned = tl.sum(tl.where(diagonal, 0.0, to_scores), 1) * weight
        turned = tl.cumsum(turned, 0, reverse=True)
        tl.store(dg_ptr + dg_at, at_queries - turned, mask=here)
        pairs = (dscores * weight[:, None]).to(dtype)
        dk += tl.dot(pairs, q, input_precision=PRECISION)
    dk_at = step[:, None] * dk_t + key[None, :]
    tl.store(dk_ptr + dk_at, dk.to(dk_ptr.dtype.element_ty), mask=mask)


class Read(torch.autograd.Function):
    """`ssd.read` on a GPU, from states as (B, N, n, K, V)."""

    @staticmethod
    @without_wgmma()
    def forward(
        ctx: Any, q_BGTK: Tensor, k_BGTK: Tensor, v_BNTV: Tensor, g_BNT: Tensor,
        weight_BNT: Tensor | None, states_BNnKV: Tensor, chunk: int, diagonal: int,
    ) -> Tensor:  # fmt: skip
        """Outputs (B, N, T, V) in the dtype of v."""
        q_BGTK, k_BGTK, v_BNTV = (dense_rows(x) for x in (q_BGTK, k_BGTK, v_BNTV))
        states_BNnKV = states_BNnKV.contiguous()
        weight = g_BNT if weight_BNT is None else weight_BNT
        batch, heads, num_chunks, keys, values = states_BNnKV.shape
        o_BNTV, block_v = by_token(v_BNTV, values, v_BNTV.dtype), tile(values, 128)
        _read_kernel[(batch * heads * num_chunks, triton.cdiv(values, block_v))](
            q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, o_BNTV,
            v_BNTV.shape[2], heads, num_chunks,
            *strides(q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, o_BNTV),
            K=keys, V=values, SHARED=heads // q_BGTK.shape[1], WEIGHTED=weight_BNT is not None,
            CHUNK=chunk, GAP=-diagonal, BLOCK_K=tile(keys), BLOCK_V=block_v,
            **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        ctx.save_for_backward(q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV)
        ctx.chunk, ctx.gap, ctx.weighted = chunk, -diagonal, weight_BNT is not None
        return o_BNTV

    @staticmethod
    @once_differentiable
    @without_wgmma()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values, log-decays, weights and states."""
        q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV = ctx.saved_tensors
        do_BNTV, groups = dense_rows(grads[0]), q_BGTK.shape[1]
        batch, heads, num_chunks, keys, values = states_BNnKV.shape
        block_q, block_k = tile(keys), tile(keys, widest(v_BNTV.dtype, 128))
        # The kernel for the keys' gradient needs fewer registers, so its blocks can be wider; the
        # values' gradient is then added up from fewer parts.
        num_q, num_k = triton.cdiv(keys, block_q), triton.cdiv(keys, block_k)
        dq_BGTK, dk_BGTK = (by_token(x, keys, x.dtype) for x in (q_BGTK, k_BGTK))
        dv_parts, _, dw_parts = gradient_parts(v_BNTV, g_BNT, num_k)
        dg_parts = decay_parts(g_BNT, num_q)
        dstates_BNnKV = torch.empty_like(states_BNnKV)
        inputs = q_BGTK, k_BGTK, v_BNTV, g_BNT, weight
        sizes = v_BNTV.shape[2], groups, num_chunks
        options = {
            "K": keys,
            "V": values,
            "SHARED": heads // groups,
            "WEIGHTED": ctx.weighted,
            "CHUNK": ctx.chunk,
            "GAP": ctx.gap,
            "BLOCK_V": tile(values, widest(v_BNTV.dtype, 64)),
            **arithmetic(v_BNTV.dtype),
        }
        _read_queries_kernel[(batch * groups * num_chunks, num_q)](
            *inputs, states_BNnKV, do_BNTV, dq_BGTK, dg_parts, dstates_BNnKV, *sizes,
            *strides(*inputs, do_BNTV, dq_BGTK, dg_parts[0]), dg_parts.stride(0),
            BLOCK_K=block_q, **options,
        )  # fmt: skip
        _read_keys_kernel[(batch * groups * num_chunks, num_k)](
            *inputs, do_BNTV, dk_BGTK, dv_parts, dg_parts, dw_parts, *sizes,
            *strides(*inputs, do_BNTV, dk_BGTK, dv_parts[0], dg_parts[0]),
            dv_parts.stride(0), dg_parts.stride(0), BLOCK_K=block_k, **options,
        )  # fmt: skip
        dv, dg = total(dv_parts, v_BNTV.dtype), total(dg_parts, g_BNT.dtype)
        dweight = total(dw_parts, g_BNT.dtype) if ctx.weighted else None
        return dq_BGTK, dk_BGTK, dv, dg, dweight, dstates_BNnKV, None, None
