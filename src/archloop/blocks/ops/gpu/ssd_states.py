"""The states of `ops.ssd` on a GPU, forward and back: what each chunk adds, carried to its end.

Gradients of keys sum over the heads of a group, so one program goes through these in turn.

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
    carry_back,
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
def _states_kernel(
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
    w_ptr += batch * w_b + head * w_n
    state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if INITIAL:
        state += tl.load(initial_ptr + row * K * V + at, mask=inside, other=0.0)
    states_ptr += row * num_chunks * K * V
    decay_ptr += row * num_chunks
    for chunk in range(num_chunks):
        tl.store(states_ptr + at, state.to(states_ptr.dtype.element_ty), mask=inside)
        here = chunk * CHUNK + step < num_steps
        mask = key_in[:, None] & here[None, :]
        k = tl.load(k_ptr + step[None, :] * k_t + key[:, None], mask=mask, other=0.0).to(tl.float32)
        v = tl.load(
            v_ptr + step[:, None] * v_t + value[None, :],
            mask=here[:, None] & value_in[None, :],
            other=0.0,
        )
        b = decay_sums(g_ptr + step * g_t, here)
        # The last of the sums in b, not a sum of its own: added up in another order, it would
        # differ from the last token's by a rounding error.
        last = tl.minimum(num_steps - chunk * CHUNK, CHUNK) - 1
        decay = tl.sum(tl.where(step == last, b, 0.0), 0)
        fade = tl.exp(decay - b)
        if WEIGHTED:
            fade *= tl.load(w_ptr + step * w_t, mask=here, other=0.0)
        k = (k * fade[None, :]).to(v.dtype)
        state = state * tl.exp(decay) + tl.dot(k, v, input_precision=PRECISION)
        tl.store(decay_ptr + chunk, decay)
        k_ptr += CHUNK * k_t
        v_ptr += CHUNK * v_t
        g_ptr += CHUNK * g_t
        w_ptr += CHUNK * w_t
        states_ptr += K * V
    tl.store(final_ptr + row * K * V + at, state, mask=inside)


@any_length("g_b", "w_b", "dg_b", "dg_part")
def _states_gradient_kernel(
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
    start = chunk.to(tl.int64) * CHUNK
    g_ptr += batch * g_b + start * g_t
    w_ptr += batch * w_b + start * w_t
    key_in, here = key < K, start + step < num_steps
    mask = here[:, None] & key_in[None, :]
    k_ptr += batch * k_b + group * k_n + start * k_t
    dtype = v_ptr.dtype.element_ty
    k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(dtype)
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part
    part = tl.program_id(1).to(tl.int64) * dg_part + batch * dg_b
    last = tl.minimum(num_steps - start, CHUNK) - 1
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    for rank in range(SHARED):
        head = group * SHARED + rank
        held = ((batch * num_groups * SHARED + head) * num_chunks + chunk) * K * V
        v_head = v_ptr + batch * v_b + head * v_n + start * v_t
        dv_head = dv_ptr + batch * dv_b + head * dv_n + start * dv_t
        b = decay_sums(g_ptr + head * g_n + step * g_t, here)
        decay = tl.sum(tl.where(step == last, b, 0.0), 0)
        fade = tl.exp(decay - b)
        weight = fade
        if WEIGHTED:
            w = tl.load(w_ptr + head * w_n + step * w_t, mask=here, other=0.0)
            weight = fade * w
        turned = tl.zeros([CHUNK], dtype=tl.float32)
        kept = tl.zeros([BLOCK_K], dtype=tl.float32)
        for first in range(0, V, BLOCK_V):
            value = first + tl.arange(0, BLOCK_V)
            value_in = value < V
            at = key[:, None] * V + value[None, :]
            inside = key_in[:, None] & value_in[None, :]
            after = tl.load(after_ptr + held + at, mask=inside, other=0.0)
            state = tl.load(states_ptr + held + at, mask=inside, other=0.0)
            kept += tl.sum(state.to(tl.float32) * after.to(tl.float32), 1)
            v_in = here[:, None] & value_in[None, :]
            v_at = step[:, None] * v_t + value[None, :]
            v = tl.load(v_head + v_at, mask=v_in, other=0.0).to(tl.float32)
            dv = tl.dot(k, after, input_precision=PRECISION)
            turned += tl.sum(v * dv, 1)
            weighted = (v * weight[:, None]).to(dtype)
            dk += tl.dot(weighted, tl.trans(after), input_precision=PRECISION)
            dv_at = step[:, None] * dv_t + value[None, :]
            dv = (dv * weight[:, None]).to(dv_ptr.dtype.element_ty)
            tl.store(dv_head + dv_at, dv, mask=v_in)
        dg_at = part + head * dg_n + (start + step) * dg_t
        if WEIGHTED:
            tl.store(dw_ptr + dg_at, turned * fade, mask=here)
        # The last key of a chunk does not decay on its way to the chunk's end. Its term is left
        # out, not subtracted: a subtraction would leave a rounding error where it should leave 0.
        turned = tl.where(step == last, 0.0, turned * weight)
        at_end = tl.sum(turned, 0) + tl.exp(decay) * tl.sum(kept, 0)
        db = tl.where(step == last, at_end, -turned)
        tl.store(dg_ptr + dg_at, tl.cumsum(db, 0, reverse=True), mask=here)
    own = batch * dk_b + group * dk_n + start * dk_t
    dk_at = step[:, None] * dk_t + key[None, :]
    tl.store(dk_ptr + own + dk_at, dk.to(dk_ptr.dtype.element_ty), mask=mask)


class States(torch.autograd.Function):
    """`ssd.states` on a GPU, with states as (B, N, n, K, V)."""

    @staticmethod
    @without_wgmma()
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
    @without_wgmma()
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
        dv_parts, dg_parts, dw_parts = gradient_parts(v_BNTV, g_BNT, parts)
        _states_gradient_kernel[(batch * groups * num_chunks, parts)](
            k_BGTK, v_BNTV, g_BNT, weight, states_BNnKV, after_BNnKV,
            dk_BGTK, dv_parts, dg_parts, dw_parts, time, groups, num_chunks,
            *strides(k_BGTK, v_BNTV, g_BNT, weight, dk_BGTK, dv_parts[0], dg_parts[0]),
            dv_parts.stride(0), dg_parts.stride(0),
            K=keys, V=values, SHARED=heads // groups, WEIGHTED=ctx.weighted, CHUNK=ctx.chunk,
            BLOCK_K=block_k, BLOCK_V=tile(values, widest(v_BNTV.dtype, 64)),
            **arithmetic(v_BNTV.dtype, 8),
        )  # fmt: skip
        dv, dg = total(dv_parts, v_BNTV.dtype), total(dg_parts, g_BNT.dtype)
        dweight = total(dw_parts, g_BNT.dtype) if ctx.weighted else None
        return dk_BGTK, dv, dg, dweight, dinitial_BNKV if ctx.needs_input_grad[4] else None, None
