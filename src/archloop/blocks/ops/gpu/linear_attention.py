"""`ops.linear_attention` on a GPU: a decay per key channel, chunks as products, forward and back.

The halving of the plain form goes on until nothing is left but the diagonal: at each of log2(C)
levels a token is either a query or a key, so it takes one exponential, at most 1, and one product
over the whole chunk gives the scores of all pairs that meet at that level. Gradients retrace the
levels. Decays come as sums from the start of each chunk, which a kernel of its own computes: a
level's reference point is another row of them.

Products feed products here, so everything compiles `without_wgmma`. Imported only where Triton is
installed. Shape suffixes: as in `ops.chunks`; S padded time, n C.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.chunks import padded_time
from archloop.blocks.ops.gpu.carry import (
    arithmetic,
    by_token,
    carry_back,
    decay_sums,
    dense_rows,
    strides,
    tile,
    total,
    value_parts,
    widest,
)
from archloop.blocks.ops.gpu.lengths import any_length
from archloop.blocks.ops.gpu.wgmma import without_wgmma


@any_length()
def _sum_kernel(
    x_ptr, y_ptr, num_steps, num_heads, num_chunks, x_b, x_n, x_t, y_b, y_n, y_t,
    K: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Log-decays summed from the start of each chunk, past the end as at the last token; or
    gradients summed to the end of each chunk.
    """
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    step = tl.arange(0, CHUNK)[:, None]
    start = chunk.to(tl.int64) * CHUNK
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    here = start + step < num_steps
    x_ptr += batch * x_b + head * x_n + start * x_t
    y_ptr += batch * y_b + head * y_n + start * y_t
    if REVERSE:
        x = tl.load(x_ptr + step * x_t + key, mask=key < K, other=0.0)
        y = tl.cumsum(x, 0, reverse=True)
        tl.store(y_ptr + step * y_t + key, y, mask=here & (key < K))
    else:
        y = decay_sums(x_ptr + step * x_t + key, here & (key < K))
        end = tl.sum(tl.where(start + step == num_steps - 1, y, 0.0), 0)
        tl.store(y_ptr + step * y_t + key, tl.where(here, y, end[None, :]), mask=key < K)


@any_length()
def _states_kernel(
    k_ptr, v_ptr, b_ptr, initial_ptr, states_ptr, final_ptr, num_steps, num_heads, num_chunks,
    k_b, k_n, k_t, v_b, v_n, v_t, b_b, b_n, b_t,
    K: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, INITIAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // num_heads, row % num_heads
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    value = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.arange(0, CHUNK)
    key_in, value_in = key < K, value < V
    at = key[:, None] * V + value[None, :]
    inside = key_in[:, None] & value_in[None, :]
    k_ptr += batch * k_b + head * k_n
    v_ptr += batch * v_b + head * v_n
    b_ptr += batch * b_b + head * b_n
    state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    if INITIAL:
        state += tl.load(initial_ptr + row * K * V + at, mask=inside, other=0.0)
    states_ptr += row * num_chunks * K * V
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
        b = tl.load(b_ptr + step[None, :] * b_t + key[:, None], mask=key_in[:, None], other=0.0)
        last = tl.load(b_ptr + (CHUNK - 1) * b_t + key, mask=key_in, other=0.0)
        k = (k * tl.exp(last[:, None] - b)).to(v.dtype)
        state = state * tl.exp(last)[:, None] + tl.dot(k, v, input_precision=PRECISION)
        k_ptr += CHUNK * k_t
        v_ptr += CHUNK * v_t
        b_ptr += CHUNK * b_t
        states_ptr += K * V
    tl.store(final_ptr + row * K * V + at, state, mask=inside)


@any_length()
def _states_gradient_kernel(
    k_ptr, v_ptr, b_ptr, states_ptr, after_ptr, dk_ptr, dv_ptr, db_ptr,
    num_steps, num_heads, num_chunks,
    k_b, k_n, k_t, v_b, v_n, v_t, b_b, b_n, b_t, dk_b, dk_n, dk_t, dv_b, dv_n, dv_t, dv_part,
    K: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of what a chunk adds; that of the values is one part a block of key channels."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    key_in, here = key < K, start + step < num_steps
    mask = here[:, None] & key_in[None, :]
    k_ptr += batch * k_b + head * k_n + start * k_t
    v_ptr += batch * v_b + head * v_n + start * v_t
    own_b = batch * b_b + head * b_n + start * b_t
    k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(tl.float32)
    b_at = step[:, None] * b_t + key[None, :]
    b = tl.load(b_ptr + own_b + b_at, mask=key_in[None, :], other=0.0)
    last = tl.load(b_ptr + own_b + (CHUNK - 1) * b_t + key, mask=key_in, other=0.0)
    fade = tl.exp(last[None, :] - b)
    faded = (k * fade).to(v_ptr.dtype.element_ty)
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part
    dv_ptr += batch * dv_b + head * dv_n + start * dv_t
    held = (row * num_chunks + chunk) * K * V
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
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
        v = tl.load(v_ptr + step[:, None] * v_t + value[None, :], mask=v_in, other=0.0)
        dk += tl.dot(v, tl.trans(after), input_precision=PRECISION)
        dv = tl.dot(faded, after, input_precision=PRECISION)
        dv_at = step[:, None] * dv_t + value[None, :]
        tl.store(dv_ptr + dv_at, dv.to(dv_ptr.dtype.element_ty), mask=v_in)
    dk *= fade
    # The last key of a chunk does not decay on its way to the chunk's end. Its term is left out,
    # not subtracted: a subtraction would leave a rounding error where it should leave 0.
    at_last = (step == tl.minimum(num_steps - start, CHUNK) - 1)[:, None]
    turned = tl.where(at_last, 0.0, k * dk)
    at_end = tl.sum(turned, 0) + tl.exp(last) * kept
    db = tl.where(at_last, at_end[None, :], -turned)
    dk_ptr += batch * dk_b + head * dk_n + start * dk_t
    tl.store(
        dk_ptr + step[:, None] * dk_t + key[None, :], dk.to(dk_ptr.dtype.element_ty), mask=mask
    )
    tl.store(db_ptr + own_b + b_at, db, mask=key_in[None, :])


@triton.jit
def _level(b_ptr, b, step, key, level, b_t, K: tl.constexpr):
    """Of one halving: who asks, each token's decay to or from the middle, and which pairs meet."""
    block = step >> level
    middle = ((block | 1) << level) - 1
    asks = ((block & 1) == 1)[:, None]
    at_middle = tl.load(
        b_ptr + middle[:, None] * b_t + key[None, :], mask=(key < K)[None, :], other=0.0
    )
    fade = tl.exp(tl.where(asks, b - at_middle, at_middle - b))
    return asks, fade, (block >> 1)[:, None] == (block >> 1)[None, :]


@any_length()
def _read_kernel(
    q_ptr, k_ptr, v_ptr, b_ptr, states_ptr, o_ptr, num_steps, num_heads, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, b_b, b_n, b_t, o_b, o_n, o_t,
    K: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    value = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    here, value_in = start + step < num_steps, value < V
    q_ptr += batch * q_b + head * q_n + start * q_t
    k_ptr += batch * k_b + head * k_n + start * k_t
    b_ptr += batch * b_b + head * b_n + start * b_t
    v_in = here[:, None] & value_in[None, :]
    v_ptr += batch * v_b + head * v_n + start * v_t
    v = tl.load(v_ptr + step[:, None] * v_t + value[None, :], mask=v_in, other=0.0)
    held = (row * num_chunks + chunk) * K * V
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    o = tl.zeros([CHUNK, BLOCK_V], dtype=tl.float32)
    for first in range(0, K, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        key_in = key < K
        mask = here[:, None] & key_in[None, :]
        q = tl.load(q_ptr + step[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(tl.float32)
        k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + step[:, None] * b_t + key[None, :], mask=key_in[None, :], other=0.0)
        at = key[:, None] * V + value[None, :]
        state = tl.load(
            states_ptr + held + at, mask=key_in[:, None] & value_in[None, :], other=0.0
        ).to(v.dtype)
        o += tl.dot((q * tl.exp(b)).to(v.dtype), state, input_precision=PRECISION)
        for level in range(LEVELS):
            asks, fade, meet = _level(b_ptr, b, step, key, level, b_t, K)
            queries = tl.where(asks, q * fade, 0.0).to(v.dtype)
            keys = tl.where(asks, 0.0, k * fade).to(v.dtype)
            product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            scores += tl.where(meet, product, 0.0)
        own = tl.sum(q * k, 1)
        scores += tl.where(step[:, None] == step[None, :], own[:, None], 0.0)
    o += tl.dot(scores.to(v.dtype), v, input_precision=PRECISION)
    o_ptr += batch * o_b + head * o_n + start * o_t
    tl.store(o_ptr + step[:, None] * o_t + value[None, :], o.to(o_ptr.dtype.element_ty), mask=v_in)


@any_length()
def _read_gradient_kernel(
    q_ptr, k_ptr, v_ptr, b_ptr, states_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, db_ptr, dstates_ptr,
    num_steps, num_heads, num_chunks,
    q_b, q_n, q_t, k_b, k_n, k_t, v_b, v_n, v_t, b_b, b_n, b_t, do_b, do_n, do_t,
    dk_b, dk_n, dk_t, dv_b, dv_n, dv_t, dv_part,
    K: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk and block of key channels; the values' is a part, as above."""
    row, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, head = row // num_heads, row % num_heads
    key = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    step = tl.arange(0, CHUNK)
    start = chunk.to(tl.int64) * CHUNK
    key_in, here = key < K, start + step < num_steps
    mask = here[:, None] & key_in[None, :]
    q_ptr += batch * q_b + head * q_n + start * q_t
    k_ptr += batch * k_b + head * k_n + start * k_t
    v_ptr += batch * v_b + head * v_n + start * v_t
    do_ptr += batch * do_b + head * do_n + start * do_t
    dv_ptr += tl.program_id(1).to(tl.int64) * dv_part
    dv_ptr += batch * dv_b + head * dv_n + start * dv_t
    held = (row * num_chunks + chunk) * K * V
    b_ptr += batch * b_b + head * b_n + start * b_t
    q = tl.load(q_ptr + step[:, None] * q_t + key[None, :], mask=mask, other=0.0).to(tl.float32)
    k = tl.load(k_ptr + step[:, None] * k_t + key[None, :], mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + step[:, None] * b_t + key[None, :], mask=key_in[None, :], other=0.0)
    dtype = v_ptr.dtype.element_ty
    decayed = (q * tl.exp(b)).to(dtype)
    dq = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    dscores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for first in range(0, V, BLOCK_V):
        value = first + tl.arange(0, BLOCK_V)
        value_in = value < V
        v_in = here[:, None] & value_in[None, :]
        at = key[:, None] * V + value[None, :]
        inside = key_in[:, None] & value_in[None, :]
        state = tl.load(states_ptr + held + at, mask=inside, other=0.0).to(dtype)
        v = tl.load(v_ptr + step[:, None] * v_t + value[None, :], mask=v_in, other=0.0)
        do = tl.load(do_ptr + step[:, None] * do_t + value[None, :], mask=v_in, other=0.0).to(dtype)
        dscores += tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dq += tl.dot(do, tl.trans(state), input_precision=PRECISION)
        dstate = tl.dot(tl.trans(decayed), do, input_precision=PRECISION)
        tl.store(dstates_ptr + held + at, dstate.to(dstates_ptr.dtype.element_ty), mask=inside)
    dq *= tl.exp(b)
    dk = tl.zeros([CHUNK, BLOCK_K], dtype=tl.float32)
    scores = tl.zeros([CHUNK, CHUNK], dtype=tl.float32)
    for level in range(LEVELS):
        asks, fade, meet = _level(b_ptr, b, step, key, level, b_t, K)
        queries = tl.where(asks, q * fade, 0.0).to(dtype)
        keys = tl.where(asks, 0.0, k * fade).to(dtype)
        product = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores += tl.where(meet, product, 0.0)
        pairs = tl.where(meet, dscores, 0.0).to(dtype)
        to_queries = tl.dot(pairs, keys, input_precision=PRECISION)
        to_keys = tl.dot(tl.trans(pairs), queries, input_precision=PRECISION)
        dq += tl.where(asks, fade * to_queries, 0.0)
        dk += tl.where(asks, 0.0, fade * to_keys)
    db = q * dq - k * dk
    diagonal = step[:, None] == step[None, :]
    own = tl.sum(tl.where(diagonal, dscores, 0.0), 1)[:, None]
    dq += own * k
    dk += own * q
    scores += tl.where(diagonal, tl.sum(q * k, 1)[:, None], 0.0)
    own_k = batch * dk_b + head * dk_n + start * dk_t
    dk_at = step[:, None] * dk_t + key[None, :]
    tl.store(dq_ptr + own_k + dk_at, dq.to(dq_ptr.dtype.element_ty), mask=mask)
    tl.store(dk_ptr + own_k + dk_at, dk.to(dk_ptr.dtype.element_ty), mask=mask)
    own_b = batch * b_b + head * b_n + start * b_t
    tl.store(db_ptr + own_b + step[:, None] * b_t + key[None, :], db, mask=key_in[None, :])
    for first in range(0, V, BLOCK_V):
        value = first + tl.arange(0, BLOCK_V)
        v_in = here[:, None] & (value < V)[None, :]
        do = tl.load(do_ptr + step[:, None] * do_t + value[None, :], mask=v_in, other=0.0).to(dtype)
        dv = tl.dot(tl.trans(scores.to(dtype)), do, input_precision=PRECISION)
        tl.store(
            dv_ptr + step[:, None] * dv_t + value[None, :],
            dv.to(dv_ptr.dtype.element_ty),
            mask=v_in,
        )


class Sums(torch.autograd.Function):
    """Log-decays (B, N, T, K) summed from the start of each chunk, (B, N, S, K)."""

    @staticmethod
    def forward(ctx: Any, g_BNTK: Tensor, chunk: int) -> Tensor:
        """Sums, to the end of the last chunk."""
        g_BNTK = dense_rows(g_BNTK)
        ctx.chunk, ctx.time = chunk, g_BNTK.shape[2]
        batch, heads, time, keys = g_BNTK.shape
        b_BNSK = g_BNTK.new_empty(batch, padded_time(time, chunk), heads, keys).transpose(1, 2)
        _sum(g_BNTK, b_BNSK, time, chunk, reverse=False)
        return b_BNSK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradient of the log-decays."""
        db_BNSK = dense_rows(grads[0])
        dg_BNTK = by_token(db_BNSK[:, :, : ctx.time], db_BNSK.shape[3], db_BNSK.dtype)
        _sum(db_BNSK, dg_BNTK, ctx.time, ctx.chunk, reverse=True)
        return dg_BNTK, None


class States(torch.autograd.Function):
    """`linear_attention.states` on a GPU."""

    @staticmethod
    @without_wgmma()
    def forward(
        ctx: Any, k_BNTK: Tensor, v_BNTV: Tensor, b_BNSK: Tensor, initial_BNKV: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """State before each chunk, in the dtype of v, and after the last, in float32."""
        k_BNTK, v_BNTV = dense_rows(k_BNTK), dense_rows(v_BNTV)
        batch, heads, time, keys = k_BNTK.shape
        values, num_chunks = v_BNTV.shape[3], b_BNSK.shape[2] // chunk
        states_BNnKV = v_BNTV.new_empty(batch, heads, num_chunks, keys, values)
        final_BNKV = v_BNTV.new_empty(batch, heads, keys, values, dtype=torch.float32)
        initial = final_BNKV if initial_BNKV is None else initial_BNKV.contiguous()
        block_k, block_v = tile(keys), tile(values, 32)
        grid = batch * heads, triton.cdiv(keys, block_k), triton.cdiv(values, block_v)
        _states_kernel[grid](
            k_BNTK, v_BNTV, b_BNSK, initial, states_BNnKV, final_BNKV, time, heads, num_chunks,
            *strides(k_BNTK, v_BNTV, b_BNSK),
            K=keys, V=values, CHUNK=chunk, BLOCK_K=block_k, BLOCK_V=block_v,
            INITIAL=initial_BNKV is not None, **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        ctx.save_for_backward(k_BNTK, v_BNTV, b_BNSK, states_BNnKV)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return states_BNnKV, final_BNKV

    @staticmethod
    @once_differentiable
    @without_wgmma()
    def backward(
        ctx: Any, dstates_BNnKV: Tensor | None, dfinal_BNKV: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of keys, values, summed log-decays and initial state."""
        k_BNTK, v_BNTV, b_BNSK, states_BNnKV = ctx.saved_tensors
        if dstates_BNnKV is None:
            dstates_BNnKV = torch.zeros_like(states_BNnKV)
        chunk, (batch, heads, time, keys) = ctx.chunk, k_BNTK.shape
        values, num_chunks = v_BNTV.shape[3], states_BNnKV.shape[2]
        decay_BNnK = b_BNSK[:, :, chunk - 1 :: chunk]
        after_BNnKV, dinitial_BNKV = carry_back(decay_BNnK, dstates_BNnKV, dfinal_BNKV)
        block_k = tile(keys)
        parts = triton.cdiv(keys, block_k)
        dk_BNTK, db_BNSK = by_token(k_BNTK, keys, k_BNTK.dtype), torch.empty_like(b_BNSK)
        dv_parts = value_parts(v_BNTV, parts)
        _states_gradient_kernel[(batch * heads * num_chunks, parts)](
            k_BNTK, v_BNTV, b_BNSK, states_BNnKV, after_BNnKV, dk_BNTK, dv_parts, db_BNSK,
            time, heads, num_chunks, *strides(k_BNTK, v_BNTV, b_BNSK, dk_BNTK, dv_parts[0]),
            dv_parts.stride(0), K=keys, V=values, CHUNK=chunk, BLOCK_K=block_k,
            BLOCK_V=tile(values, widest(v_BNTV.dtype, 64)), **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        dinitial = dinitial_BNKV if ctx.needs_input_grad[3] else None
        return dk_BNTK, total(dv_parts, v_BNTV.dtype), db_BNSK, dinitial, None


class Read(torch.autograd.Function):
    """`linear_attention.read` on a GPU."""

    @staticmethod
    @without_wgmma()
    def forward(
        ctx: Any, q_BNTK: Tensor, k_BNTK: Tensor, v_BNTV: Tensor, b_BNSK: Tensor,
        states_BNnKV: Tensor, chunk: int,
    ) -> Tensor:  # fmt: skip
        """Outputs (B, N, T, V) in the dtype of v."""
        q_BNTK, k_BNTK, v_BNTV = (dense_rows(x) for x in (q_BNTK, k_BNTK, v_BNTV))
        states_BNnKV = states_BNnKV.contiguous()
        batch, heads, num_chunks, keys, values = states_BNnKV.shape
        o_BNTV = by_token(v_BNTV, values, v_BNTV.dtype)
        block_v = tile(values, widest(v_BNTV.dtype, 128))
        _read_kernel[(batch * heads * num_chunks, triton.cdiv(values, block_v))](
            q_BNTK, k_BNTK, v_BNTV, b_BNSK, states_BNnKV, o_BNTV,
            q_BNTK.shape[2], heads, num_chunks,
            *strides(q_BNTK, k_BNTK, v_BNTV, b_BNSK, o_BNTV),
            K=keys, V=values, CHUNK=chunk, LEVELS=chunk.bit_length() - 1, BLOCK_K=tile(keys),
            BLOCK_V=block_v, **arithmetic(v_BNTV.dtype),
        )  # fmt: skip
        ctx.save_for_backward(q_BNTK, k_BNTK, v_BNTV, b_BNSK, states_BNnKV)
        ctx.chunk = chunk
        return o_BNTV

    @staticmethod
    @once_differentiable
    @without_wgmma()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries, keys, values, summed log-decays and states."""
        q_BNTK, k_BNTK, v_BNTV, b_BNSK, states_BNnKV = ctx.saved_tensors
        do_BNTV, chunk = dense_rows(grads[0]), ctx.chunk
        batch, heads, num_chunks, keys, values = states_BNnKV.shape
        block_k = tile(keys)
        parts = triton.cdiv(keys, block_k)
        dq_BNTK, dk_BNTK = (by_token(x, keys, x.dtype) for x in (q_BNTK, k_BNTK))
        dv_parts = value_parts(v_BNTV, parts)
        db_BNSK, dstates_BNnKV = torch.empty_like(b_BNSK), torch.empty_like(states_BNnKV)
        _read_gradient_kernel[(batch * heads * num_chunks, parts)](
            q_BNTK, k_BNTK, v_BNTV, b_BNSK, states_BNnKV, do_BNTV,
            dq_BNTK, dk_BNTK, dv_parts, db_BNSK, dstates_BNnKV,
            q_BNTK.shape[2], heads, num_chunks,
            *strides(q_BNTK, k_BNTK, v_BNTV, b_BNSK, do_BNTV, dk_BNTK, dv_parts[0]),
            dv_parts.stride(0),
            K=keys, V=values, CHUNK=chunk, LEVELS=chunk.bit_length() - 1, BLOCK_K=block_k,
            BLOCK_V=tile(values, widest(v_BNTV.dtype, 64)), **arithmetic(v_BNTV.dtype, 8),
        )  # fmt: skip
        return dq_BNTK, dk_BNTK, total(dv_parts, v_BNTV.dtype), db_BNSK, dstates_BNnKV, None


def _sum(x_BNTK: Tensor, y_BNTK: Tensor, time: int, chunk: int, *, reverse: bool) -> None:
    batch, heads, _, keys = x_BNTK.shape
    num_chunks, block_k = padded_time(time, chunk) // chunk, tile(keys)
    _sum_kernel[(batch * heads * num_chunks, triton.cdiv(keys, block_k))](
        x_BNTK, y_BNTK, time, heads, num_chunks, *strides(x_BNTK, y_BNTK),
        K=keys, CHUNK=chunk, BLOCK_K=block_k, REVERSE=reverse,
    )  # fmt: skip
