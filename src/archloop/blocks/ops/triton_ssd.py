"""`ops.ssd` on a GPU: one decay per head, a chunk as decayed attention, forward and back.

Gradients of queries and keys sum over the heads of a group, so one program goes through these in
turn, and the product of queries and keys is formed once for all of them.

Imported only where Triton is installed. Shape suffixes: as in `ops.ssd`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.triton_carry import (
    arithmetic,
    by_token,
    carry_back,
    dense_rows,
    strides,
    tile,
    total,
    value_parts,
    widest,
)
from archloop.blocks.ops.triton_kernels import jit


@jit
def _states_kernel(  # type: ignore[no-untyped-def]
    k_ptr, v_ptr, g_ptr, w_ptr, initial_ptr, states_ptr, final_ptr, decay_ptr,
    num_steps, num_heads, num_chunks, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, INITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // num_heads, row % num_heads
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.arange(0, CHUNK)
    key_in, value_in = key < K, value < V
    at = key[:, None] * V + value[None, :]
    inside = key_in[:, None] & value_in[None, :]
    k_ptr += batch * k_b + head // SHARED * k_n
    v_ptr += batch * v_b + head * v_n
    g_ptr += batch * g_b + head * g_n
    state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if INITIAL:
        state += tl.load(initial_ptr + row * K * V + at, mask=inside, other=0.0)
    for chunk in range(num_chunks):
        out = states_ptr + (row * num_chunks + chunk) * K * V + at
        tl.store(out, state.to(states_ptr.dtype.element_ty), mask=inside)
        t = chunk * CHUNK + step
        here = t < num_steps
        mask = key_in[:, None] & here[None, :]
        k = tl.load(k_ptr + t[None, :] * k_t + key[:, None], mask=mask, other=0.0).to(tl.float32)
        v = tl.load(
            v_ptr + t[:, None] * v_t + value[None, :],
            mask=here[:, None] & value_in[None, :],
            other=0.0,
        )
        g = tl.load(g_ptr + t * g_t, mask=here, other=0.0)
        decay = tl.sum(g, 0)
        fade = tl.exp(decay - tl.cumsum(g, 0))
        if WEIGHTED:
            fade *= tl.load(w_ptr + batch * w_b + head * w_n + t * w_t, mask=here, other=0.0)
        k = (k * fade[None, :]).to(v.dtype)
        state = state * tl.exp(decay) + tl.dot(k, v, input_precision=PRECISION)
        tl.store(decay_ptr + row * num_chunks + chunk, decay)
    tl.store(final_ptr + row * K * V + at, state, mask=inside)


@jit
def _states_gradient_kernel(  # type: ignore[no-untyped-def]
    k_ptr, v_ptr, g_ptr, w_ptr, states_ptr, after_ptr, dk_ptr, dv_ptr, dg_ptr, dw_ptr,
    num_steps, num_groups, num_chunks,
    k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, dk_b, dk_n, dk_t,
    dv_b, dv_n, dv_t, dg_b, dg_n, dg_t, dv_part, dg_part,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what a chunk adds; those of values, decays and weights are parts, one a block
    of key channels.
    """
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, group = row // num_groups, row % num_groups
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    t = chunk * CHUNK + step
    key_in, here = key < K, t < num_steps
    mask = here[:, None] & key_in[None, :]
    k_ptr += batch * k_b + group * k_n
    dtype = v_ptr.dtype.element_ty
    k = tl.load(k_ptr + t[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(dtype)
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part
    part = tl.program_id(1).to(tl.int64) * dg_part + batch * dg_b
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    for rank in range(SHARED):
        head = group * SHARED + rank
        g = tl.load(g_ptr + batch * g_b + head * g_n + t * g_t, mask=here, other=0.0)
        decay = tl.sum(g, 0)
        fade = tl.exp(decay - tl.cumsum(g, 0))
        weight = fade
        if WEIGHTED:
            w = tl.load(w_ptr + batch * w_b + head * w_n + t * w_t, mask=here, other=0.0)
            weight = fade * w
        turned = tl.zeros([CHUNK], dtype=tl.float32)
        kept = tl.zeros([BLOCK_K], dtype=tl.float32)
        for first in range(0, V, BLOCK_V):
            value = first + tl.arange(0, BLOCK_V)
            value_in = value < V
            held = (batch * num_groups * SHARED + head) * num_chunks + chunk
            at = held * K * V + key[:, None] * V + value[None, :]
            inside = key_in[:, None] & value_in[None, :]
            after = tl.load(after_ptr + at, mask=inside, other=0.0)
            state = tl.load(states_ptr + at, mask=inside, other=0.0)
            kept += tl.sum(state.to(tl.float32) * after.to(tl.float32), 1)
            v_in = here[:, None] & value_in[None, :]
            v_at = batch * v_b + head * v_n + t[:, None] * v_t + value[None, :]
            v = tl.load(v_ptr + v_at, mask=v_in, other=0.0).to(tl.float32)
            dv = tl.dot(k, after, input_precision=PRECISION)
            turned += tl.sum(v * dv, 1)
            weighted = (v * weight[:, None]).to(dtype)
            dk += tl.dot(weighted, tl.trans(after), input_precision=PRECISION)
            dv_at = batch * dv_b + head * dv_n + t[:, None] * dv_t + value[None, :]
            dv = (dv * weight[:, None]).to(dv_ptr.dtype.element_ty)
            tl.store(dv_ptr + dv_at, dv, mask=v_in)
        dg_at = part + head * dg_n + t * dg_t
        if WEIGHTED:
            tl.store(dw_ptr + dg_at, turned * fade, mask=here)
        turned *= weight
        at_end = tl.sum(turned, 0) + tl.exp(decay) * tl.sum(kept, 0)
        db = tl.where(step == CHUNK - 1, at_end, 0.0) - turned
        tl.store(dg_ptr + dg_at, tl.cumsum(db, 0, reverse=True), mask=here)
    dk_at = batch * dk_b + group * dk_n + t[:, None] * dk_t + key[None, :]
    tl.store(dk_ptr + dk_at, dk.to(dk_ptr.dtype.element_ty), mask=mask)


@jit
def _read_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, g_ptr, w_ptr, states_ptr, o_ptr, num_steps, num_heads, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, o_b, o_n, o_t,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    value = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.arange(0, CHUNK)
    t = chunk * CHUNK + step
    here, value_in = t < num_steps, value < V
    v_in = here[:, None] & value_in[None, :]
    q_ptr += batch * q_b + head // SHARED * q_n
    k_ptr += batch * k_b + head // SHARED * k_n
    v_at = batch * v_b + head * v_n + t[:, None] * v_t + value[None, :]
    v = tl.load(v_ptr + v_at, mask=v_in, other=0.0)
    b = tl.cumsum(tl.load(g_ptr + batch * g_b + head * g_n + t * g_t, mask=here, other=0.0), 0)
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    o = tl.zeros([CHUNK, BLOCK_V], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        key_in = key < K
        mask = here[:, None] & key_in[None, :]
        q = tl.load(q_ptr + t[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(v.dtype)
        k = tl.load(k_ptr + t[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(v.dtype)
        at = (row * num_chunks + chunk) * K * V + key[:, None] * V + value[None, :]
        inside = key_in[:, None] & value_in[None, :]
        state = tl.load(states_ptr + at, mask=inside, other=0.0).to(v.dtype)
        scores += tl.dot(q, tl.trans(k), input_precision=PRECISION)
        o += tl.dot(q, state, input_precision=PRECISION)
    later = step[:, None] >= step[None, :]
    ratio = tl.exp(tl.where(later, b[:, None] - b[None, :], 0.0))
    if WEIGHTED:
        w = tl.load(w_ptr + batch * w_b + head * w_n + t * w_t, mask=here, other=0.0)
        ratio *= w[None, :]
    scores = tl.where(later, scores * ratio, 0.0).to(v.dtype)
    o = o * tl.exp(b)[:, None] + tl.dot(scores, v, input_precision=PRECISION)
    o_at = batch * o_b + head * o_n + t[:, None] * o_t + value[None, :]
    tl.store(o_ptr + o_at, o.to(o_ptr.dtype.element_ty), mask=v_in)


@jit
def _read_gradient_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, g_ptr, w_ptr, states_ptr, do_ptr,
    dq_ptr, dk_ptr, dv_ptr, dg_ptr, dw_ptr, dstates_ptr, num_steps, num_groups, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, g_b, g_n, g_t, w_b, w_n, w_t, do_b, do_n, do_t,
    dk_b, dk_n, dk_t, dv_b, dv_n, dv_t, dg_b, dg_n, dg_t, dv_part, dg_part,
    K: tl.constexpr, V: tl.constexpr, SHARED: tl.constexpr, WEIGHTED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk, block of key channels and group; parts as above."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, group = row // num_groups, row % num_groups
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    t = chunk * CHUNK + step
    key_in, here = key < K, t < num_steps
    mask = here[:, None] & key_in[None, :]
    dtype = v_ptr.dtype.element_ty
    q_at = batch * q_b + group * q_n + t[:, None] * q_t + key[None, :]
    k_at = batch * k_b + group * k_n + t[:, None] * k_t + key[None, :]
    q = tl.load(q_ptr + q_at, mask=mask, other=0.0).to(dtype)
    k = tl.load(k_ptr + k_at, mask=mask, other=0.0).to(dtype)
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part
    part = tl.program_id(1).to(tl.int64) * dg_part + batch * dg_b
    product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    later = step[:, None] >= step[None, :]
    dq = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    for rank in range(SHARED):
        head = group * SHARED + rank
        g = tl.load(g_ptr + batch * g_b + head * g_n + t * g_t, mask=here, other=0.0)
        b = tl.cumsum(g, 0)
        ratio = tl.exp(tl.where(later, b[:, None] - b[None, :], 0.0))
        ratio = tl.where(later, ratio, 0.0)
        weight = tl.full([CHUNK], 1.0, dtype=tl.float32)
        if WEIGHTED:
            weight = tl.load(w_ptr + batch * w_b + head * w_n + t * w_t, mask=here, other=0.0)
        scores = (product * ratio * weight[None, :]).to(dtype)
        grown = tl.exp(b)[:, None]
        dscores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
        db = tl.zeros([CHUNK], dtype=tl.float32)
        for first in range(0, V, BLOCK_V):
            value = first + tl.arange(0, BLOCK_V)
            value_in = value < V
            v_in = here[:, None] & value_in[None, :]
            held = (batch * num_groups * SHARED + head) * num_chunks + chunk
            at = held * K * V + key[:, None] * V + value[None, :]
            inside = key_in[:, None] & value_in[None, :]
            v_at = batch * v_b + head * v_n + t[:, None] * v_t + value[None, :]
            do_at = batch * do_b + head * do_n + t[:, None] * do_t + value[None, :]
            dv_at = batch * dv_b + head * dv_n + t[:, None] * dv_t + value[None, :]
            state = tl.load(states_ptr + at, mask=inside, other=0.0).to(dtype)
            v = tl.load(v_ptr + v_at, mask=v_in, other=0.0)
            do = tl.load(do_ptr + do_at, mask=v_in, other=0.0).to(dtype)
            dscores += tl.dot(do, tl.trans(v), input_precision=PRECISION)
            dv = tl.dot(tl.trans(scores), do, input_precision=PRECISION)
            tl.store(dv_ptr + dv_at, dv.to(dv_ptr.dtype.element_ty), mask=v_in)
            grows = do.to(tl.float32) * grown
            from_state = tl.dot(q, state, input_precision=PRECISION)
            db += tl.sum(from_state * grows, 1)
            grows = grows.to(dtype)
            dq += tl.dot(grows, tl.trans(state), input_precision=PRECISION)
            dstate = tl.dot(tl.trans(q), grows, input_precision=PRECISION)
            tl.store(dstates_ptr + at, dstate.to(dstates_ptr.dtype.element_ty), mask=inside)
        dscores *= ratio
        turned = dscores * product
        dg_at = part + head * dg_n + t * dg_t
        to_weight = tl.sum(turned, 0)
        if WEIGHTED:
            tl.store(dw_ptr + dg_at, to_weight, mask=here)
        db += tl.sum(turned * weight[None, :], 1) - to_weight * weight
        tl.store(dg_ptr + dg_at, tl.cumsum(db, 0, reverse=True), mask=here)
        pairs = (dscores * weight[None, :]).to(dtype)
        dq += tl.dot(pairs, k, input_precision=PRECISION)
        dk += tl.dot(tl.trans(pairs), q, input_precision=PRECISION)
    dk_at = batch * dk_b + group * dk_n + t[:, None] * dk_t + key[None, :]
    tl.store(dq_ptr + dk_at, dq.to(dq_ptr.dtype.element_ty), mask=mask)
    tl.store(dk_ptr + dk_at, dk.to(dk_ptr.dtype.element_ty), mask=mask)


class States(torch.autograd.Function):
    """`ssd.states` on a GPU, with states as (B, N, n, K, V)."""

    @staticmethod
    def forward(
        ctx: Any, k_BGTK: Tensor, v_BNTV: Tensor, g_BNT: Tensor, weight_BNT: Tensor | None,
        initial_BNKV: Tensor | None, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """State before each chunk, in the dtype of v, and after the last, in float32."""
        k_BGTK, v_BNTV = dense_rows(k_BGTK), dense_rows(v_BNTV)
        batch, heads, time, values = v_BNTV.shape
        groups, keys, num_chunks = k_BGTK.shape[1], k_BGTK.shape[3], triton.cdiv(time, chunk)
        states_BNnKV = v_BNTV.new_empty(batch, heads, num_chunks, keys, values)
        final_BNKV = g_BNT.new_empty(batch, heads, keys, values)
        decay_BNn1 = g_BNT.new_empty(batch, heads, num_chunks, 1)
        initial = final_BNKV if initial_BNKV is None else initial_BNKV.contiguous()
        weight = g_BNT if weight_BNT is None else weight_BNT
        block_k, block_v = tile(keys), tile(values)
        grid = batch * heads, triton.cdiv(keys, block_k), triton.cdiv(values, block_v)
        _states_kernel[grid](
            k_BGTK, v_BNTV, g_BNT, weight, initial, states_BNnKV, final_BNKV, decay_BNn1,
            time, heads, num_chunks, *strides(k_BGTK, v_BNTV, g_BNT, weight),
            K=keys, V=values, SHARED=heads // groups, WEIGHTED=weight_BNT is not None, CHUNK=chunk,
            BLOCK_K=block_k, BLOCK_V=block_v, INITIAL=initial_BNKV is not None,
            **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        ctx.save_for_backward(k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, decay_BNn1)
        ctx.chunk, ctx.weighted = chunk, weight_BNT is not None
        ctx.set_materialize_grads(False)
        return states_BNnKV, final_BNKV

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dstates_BNnKV: Tensor | None, dfinal_BNKV: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of keys, values, log-decays, weights and initial state."""
        k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, decay_BNn1 = ctx.saved_tensors
        if dstates_BNnKV is None:
            dstates_BNnKV = torch.zeros_like(states_BNnKV)
        after_BNnKV, dinitial_BNKV = carry_back(decay_BNn1, dstates_BNnKV, dfinal_BNKV)
        batch, groups, time, keys = k_BGTK.shape
        heads, num_chunks, values = states_BNnKV.shape[1], states_BNnKV.shape[2], v_BNTV.shape[3]
        block_k = tile(keys, widest(v_BNTV.dtype, 128))
        parts = triton.cdiv(keys, block_k)
        dk_BGTK = by_token(k_BGTK, keys, k_BGTK.dtype)
        dv_parts, dg_parts, dw_parts = _parts(v_BNTV, g_BNT, parts)
        _states_gradient_kernel[(batch * groups * num_chunks, parts)](
            k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, after_BNnKV,
            dk_BGTK, dv_parts, dg_parts, dw_parts, time, groups, num_chunks,
            *strides(k_BGTK, v_BNTV, g_BNT, weight, dk_BGTK, dv_parts[0], dg_parts[0]),
            dv_parts.stride(0), dg_parts.stride(0),
            K=keys, V=values, SHARED=heads // groups, WEIGHTED=ctx.weighted, CHUNK=ctx.chunk,
            BLOCK_K=block_k, BLOCK_V=tile(values, widest(v_BNTV.dtype, 64)),
            **arithmetic(v_BNTV.dtype), num_warps=8,
        )  # fmt: skip
        dv, dg = total(dv_parts, v_BNTV.dtype), total(dg_parts, g_BNT.dtype)
        dweight = total(dw_parts, g_BNT.dtype) if ctx.weighted else None
        return dk_BGTK, dv, dg, dweight, dinitial_BNKV if ctx.needs_input_grad[4] else None, None


class Read(torch.autograd.Function):
    """`ssd.read` on a GPU, from states as (B, N, n, K, V)."""

    @staticmethod
    def forward(
        ctx: Any, q_BGTK: Tensor, k_BGTK: Tensor, v_BNTV: Tensor, g_BNT: Tensor,
        weight_BNT: Tensor | None, states_BNnKV: Tensor, chunk: int,
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
            CHUNK=chunk, BLOCK_K=tile(keys), BLOCK_V=block_v, **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        ctx.save_for_backward(q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV)
        ctx.chunk, ctx.weighted = chunk, weight_BNT is not None
        return o_BNTV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values, log-decays, weights and states."""
        q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV = ctx.saved_tensors
        do_BNTV, groups = dense_rows(grads[0]), q_BGTK.shape[1]
        batch, heads, num_chunks, keys, values = states_BNnKV.shape
        block_k = tile(keys, widest(v_BNTV.dtype, 128))
        parts = triton.cdiv(keys, block_k)
        dq_BGTK, dk_BGTK = (by_token(x, keys, x.dtype) for x in (q_BGTK, k_BGTK))
        dv_parts, dg_parts, dw_parts = _parts(v_BNTV, g_BNT, parts)
        dstates_BNnKV = torch.empty_like(states_BNnKV)
        _read_gradient_kernel[(batch * groups * num_chunks, parts)](
            q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, do_BNTV,
            dq_BGTK, dk_BGTK, dv_parts, dg_parts, dw_parts, dstates_BNnKV,
            v_BNTV.shape[2], groups, num_chunks,
            *strides(q_BGTK, k_BGTK, v_BNTV, g_BNT, weight, do_BNTV),
            *strides(dk_BGTK, dv_parts[0], dg_parts[0]), dv_parts.stride(0), dg_parts.stride(0),
            K=keys, V=values, SHARED=heads // groups, WEIGHTED=ctx.weighted, CHUNK=ctx.chunk,
            BLOCK_K=block_k, BLOCK_V=tile(values, widest(v_BNTV.dtype, 64)),
            **arithmetic(v_BNTV.dtype), num_warps=8,
        )  # fmt: skip
        dv, dg = total(dv_parts, v_BNTV.dtype), total(dg_parts, g_BNT.dtype)
        dweight = total(dw_parts, g_BNT.dtype) if ctx.weighted else None
        return dq_BGTK, dk_BGTK, dv, dg, dweight, dstates_BNnKV, None


def _parts(v_BNTV: Tensor, g_BNT: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for gradients of values, log-decays and weights, a part for each block of keys."""
    dg_parts = g_BNT.new_empty(parts, *g_BNT.shape)
    return value_parts(v_BNTV, parts), dg_parts, torch.empty_like(dg_parts)
