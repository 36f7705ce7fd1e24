"""The gated delta rule's corrected values and chunk states on a GPU, forward and backward.

Forward: (1) cumulative log-decays; (2) for all chunks at once the inverse A of the triangular
system, what the values want, ``u = A beta v``, what the state answers, ``w = A (beta k e^b)``, and
the keys decayed to the end of their chunk; (3) one program a head and block of values goes through
the chunks: ``v' = u - w S``, then ``S = e^last S + keys^T v'``. Backward: (1) the mirror image of
(3) carries the gradient of the state from the end to the start; (2) all chunks' gradients at once
(`ops.gpu.delta_grad`).

Every exponential is taken of a number that is at most 0. With a decay per channel, a chunk is
halved as in `ops.linear_attention`: at the level of half-blocks of h tokens, a key decays by
``e^-|b - ref|`` to or from the end of the left half, which is right for both halves, so one product
of the decayed keys with themselves holds all scores between the two. The inverse is built by
doubling as in `ops.delta_rule`, in float32; other products take the inputs' dtype and add up in
float32. Products feed products here, so everything compiles `without_wgmma`.

Imported only where Triton is installed. Shape suffixes: B batch, N value heads, G key heads, T
time, K key width, V value width, n chunks, C chunk length.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.carry import decay_sums
from archloop.blocks.ops.gpu.delta_grad import chunk_gradients
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
from archloop.blocks.ops.gpu.wgmma import without_wgmma


@any_length()
def _cumulate_kernel(
    g_ptr, b_ptr, time, num_chunks, heads, g_b, g_n, g_t,
    K: tl.constexpr, C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Cumulative log-decays within each chunk."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    t, j = chunk * C + tl.arange(0, C), tl.arange(0, BLOCK_K)
    mask = (t < time)[:, None] & (j < K)[None, :]
    g_ptr += head // heads * g_b + head % heads * g_n
    b = decay_sums(g_ptr + t[:, None].to(tl.int64) * g_t + j[None, :], mask)
    tl.store(b_ptr + head * time * K + t[:, None] * K + j[None, :], b, mask=mask)


@any_length("beta_b")
def _system_kernel(
    k_ptr, beta_ptr, b_ptr, lower_ptr, time, num_chunks, heads, sharing,
    k_b, k_n, k_t, beta_b, beta_n, beta_t,
    K: tl.constexpr, BLOCK_K: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr,
    LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each chunk's L, (C, C), zero on and above the diagonal."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, own = head // heads, head % heads
    i, j = tl.arange(0, C), tl.arange(0, BLOCK_K)
    row, col = i[:, None], i[None, :]
    start = (chunk * C).to(tl.int64)
    length = tl.minimum(time - chunk * C, C)
    i_in, mask = i < length, (i < length)[:, None] & (j < K)[None, :]
    k_ptr += batch * k_b + own // sharing * k_n + start * k_t
    k = tl.load(k_ptr + i[:, None] * k_t + j[None, :], mask=mask, other=0.0)
    if VECTOR:
        b_ptr += (head * time + start) * K
        b = in_place(tl.load(b_ptr + i[:, None] * K + j[None, :], mask=mask, other=0.0))
        scores = tl.zeros([C, C], dtype=tl.float32)
        for level in range(LEVELS):
            near = (k * level_decay(b, b_ptr, i, j, length, level, K)).to(k.dtype)
            part = tl.dot(near, tl.trans(near), input_precision=PRECISION)
            scores = tl.where(joins_halves(row, col, level), part, scores)
    else:
        b = tl.load(b_ptr + head * time + start + i, mask=i_in, other=0.0)
        ratio = tl.exp(tl.minimum(b[:, None] - b[None, :], 0.0))
        scores = tl.dot(k, tl.trans(k), input_precision=PRECISION) * ratio
    beta_ptr += batch * beta_b + own * beta_n + start * beta_t
    beta = tl.load(beta_ptr + i * beta_t, mask=i_in, other=0.0).to(tl.float32)
    lower = tl.where(row > col, scores * beta[:, None], 0.0)
    tl.store(lower_ptr + tl.program_id(0).to(tl.int64) * C * C + row * C + col, lower)


@triton.jit
def _corner(inverse, below, n: tl.constexpr, h: tl.constexpr):
    """For n pairs of blocks of h rows, their inverses and what joins these (n, h, h) below."""
    pairs = tl.permute(tl.reshape(inverse, (n, 2, h, h)), (0, 2, 3, 1))
    first, second = tl.split(pairs)
    corner = tl.dot(second, below, input_precision="tf32x3")
    return first, second, -tl.dot(corner, first, input_precision="tf32x3")


@any_length()
def _inverse_kernel(lower_ptr, a_ptr, C: tl.constexpr):
    """``(I + L)^-1`` of one chunk in float32, by doubling blocks up to C = 64 rows."""
    tl.static_assert(C == 64)
    lower_ptr += tl.program_id(0).to(tl.int64) * C * C
    a_ptr += tl.program_id(0).to(tl.int64) * C * C
    row, col = tl.arange(0, 16)[None, :, None], tl.arange(0, 16)[None, None, :]
    at = tl.arange(0, 4)[:, None, None] * (16 * C + 16) + row * C + col
    leaves = tl.load(lower_ptr + at)
    inverse = tl.where(row == col, 1.0, 0.0) - tl.where(joins_halves(row, col, 0), leaves, 0.0)
    for level in range(1, 4):
        corner = tl.where(joins_halves(row, col, level), leaves, 0.0)
        corner = tl.dot(inverse, corner, input_precision="tf32x3")
        inverse -= tl.dot(corner, inverse, input_precision="tf32x3")
    at = tl.arange(0, 2)[:, None, None] * (32 * C + 32) + (16 + row) * C + col
    first, second, corner = _corner(inverse, tl.load(lower_ptr + at), 2, 16)
    above, under = tl.join(first, tl.zeros_like(first)), tl.join(corner, second)
    inverse = tl.reshape(tl.permute(tl.join(above, under), (0, 4, 1, 3, 2)), (2, 32, 32))
    row, col = tl.arange(0, 32)[None, :, None], tl.arange(0, 32)[None, None, :]
    first, second, corner = _corner(inverse, tl.load(lower_ptr + (32 + row) * C + col), 1, 32)
    at = a_ptr + row * C + col
    dtype = a_ptr.dtype.element_ty
    tl.store(at, first.to(dtype))
    tl.store(at + 32, tl.zeros_like(first).to(dtype))
    tl.store(at + 32 * C, corner.to(dtype))
    tl.store(at + 32 * C + 32, second.to(dtype))


@any_length("beta_b")
def _apply_kernel(
    k_ptr, v_ptr, beta_ptr, b_ptr, a_ptr, w_ptr, u_ptr, keys_ptr, time, num_chunks, heads, sharing,
    k_b, k_n, k_t, v_b, v_n, v_t, beta_b, beta_n, beta_t,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    VECTOR: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What values want, what the state answers, and the keys decayed to the end of the chunk."""
    head, chunk = tl.program_id(0).to(tl.int64) // num_chunks, tl.program_id(0) % num_chunks
    batch, own = head // heads, head % heads
    i, j, c = tl.arange(0, C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    start = (chunk * C).to(tl.int64)
    length = tl.minimum(time - chunk * C, C)
    i_in = i < length
    a_ptr += tl.program_id(0).to(tl.int64) * C * C
    a = tl.load(a_ptr + i[:, None] * C + i[None, :])
    beta_ptr += batch * beta_b + own * beta_n + start * beta_t
    beta = tl.load(beta_ptr + i * beta_t, mask=i_in, other=0.0).to(tl.float32)[:, None]
    mask = i_in[:, None] & (c < V)[None, :]
    v_ptr += batch * v_b + own * v_n + start * v_t
    v = in_place(tl.load(v_ptr + i[:, None] * v_t + c[None, :], mask=mask, other=0.0))
    u = tl.dot(a, (beta * v).to(a.dtype), input_precision=PRECISION)
    out = (head * time + start) * V + i[:, None] * V + c[None, :]
    tl.store(u_ptr + out, u.to(a.dtype), mask=mask)
    mask = i_in[:, None] & (j < K)[None, :]
    k_ptr += batch * k_b + own // sharing * k_n + start * k_t
    k = in_place(tl.load(k_ptr + i[:, None] * k_t + j[None, :], mask=mask, other=0.0))
    if VECTOR:
        b_ptr += (head * time + start) * K
        b = tl.load(b_ptr + i[:, None] * K + j[None, :], mask=mask, other=0.0)
        last = tl.load(b_ptr + (length - 1) * K + j, mask=j < K, other=0.0)[None, :]
    else:
        b_ptr += head * time + start
        b = tl.load(b_ptr + i, mask=i_in, other=0.0)[:, None]
        last = tl.load(b_ptr + length - 1)
    out = (head * time + start) * K + i[:, None] * K + j[None, :]
    keys = k * tl.exp(tl.minimum(last - b, 0.0))
    tl.store(keys_ptr + out, keys.to(a.dtype), mask=mask)
    w = tl.dot(a, (beta * k * tl.exp(b)).to(a.dtype), input_precision=PRECISION)
    tl.store(w_ptr + out, w.to(a.dtype), mask=mask)


@triton.jit
def _decay(b_ptr, last, j, K: tl.constexpr, VECTOR: tl.constexpr):
    """What is left of the state after the chunk whose last token is row `last`: (K, 1)."""
    if VECTOR:
        b = tl.load(b_ptr + last * K + j, mask=j < K, other=0.0)
    else:
        b = tl.load(b_ptr + last + 0 * j)
    return tl.exp(b)[:, None]


@any_length()
def _carry_kernel(
    w_ptr, u_ptr, keys_ptr, b_ptr, initial_ptr, values_ptr, states_ptr, final_ptr,
    time, num_chunks, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, VECTOR: tl.constexpr, INITIAL: tl.constexpr, C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Corrected values and the state before each chunk."""
    head = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, C), tl.arange(0, BLOCK_K)
    c = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    j_in, c_in = j < K, c < V
    held, held_in = j[:, None] * V + c[None, :], j_in[:, None] & c_in[None, :]
    w_ptr += head * time * K
    keys_ptr += head * time * K
    u_ptr += head * time * V
    values_ptr += head * time * V
    states_ptr += head * num_chunks * K * V
    b_ptr += head * time * (K if VECTOR else 1)
    if INITIAL:
        state = tl.load(initial_ptr + head * K * V + held, mask=held_in, other=0.0)
    else:
        state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
    for chunk in range(num_chunks):
        t = chunk * C + i
        t_in = t < time
        kept = state.to(states_ptr.dtype.element_ty)
        tl.store(states_ptr + chunk * K * V + held, kept, mask=held_in)
        at, mask = t[:, None] * K + j[None, :], t_in[:, None] & j_in[None, :]
        w = tl.load(w_ptr + at, mask=mask, other=0.0)
        keys = tl.load(keys_ptr + at, mask=mask, other=0.0)
        at, mask = t[:, None] * V + c[None, :], t_in[:, None] & c_in[None, :]
        u = tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32)
        values = (u - tl.dot(w, kept, input_precision=PRECISION)).to(w.dtype)
        tl.store(values_ptr + at, values, mask=mask)
        state *= _decay(b_ptr, tl.minimum((chunk + 1) * C, time) - 1, j, K, VECTOR)
        state += tl.dot(tl.trans(keys), values, input_precision=PRECISION)
    tl.store(final_ptr + head * K * V + held, state, mask=held_in)


@any_length()
def _carry_back_kernel(
    w_ptr, keys_ptr, b_ptr, dvalues_ptr, dstates_ptr, dfinal_ptr, total_ptr, after_ptr,
    dinitial_ptr, time, num_chunks, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr, VECTOR: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the corrected values, all uses counted, and of the state after each chunk."""
    head = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, C), tl.arange(0, BLOCK_K)
    c = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    j_in, c_in = j < K, c < V
    held, held_in = j[:, None] * V + c[None, :], j_in[:, None] & c_in[None, :]
    w_ptr += head * time * K
    keys_ptr += head * time * K
    dvalues_ptr += head * time * V
    total_ptr += head * time * V
    dstates_ptr += head * num_chunks * K * V
    after_ptr += head * num_chunks * K * V
    b_ptr += head * time * (K if VECTOR else 1)
    dstate = tl.load(dfinal_ptr + head * K * V + held, mask=held_in, other=0.0).to(tl.float32)
    for back in range(num_chunks):
        chunk = num_chunks - 1 - back
        t = chunk * C + i
        t_in = t < time
        of_chunk = chunk * K * V + held
        after = dstate.to(after_ptr.dtype.element_ty)
        tl.store(after_ptr + of_chunk, after, mask=held_in)
        at, mask = t[:, None] * K + j[None, :], t_in[:, None] & j_in[None, :]
        w = tl.load(w_ptr + at, mask=mask, other=0.0)
        keys = tl.load(keys_ptr + at, mask=mask, other=0.0)
        at, mask = t[:, None] * V + c[None, :], t_in[:, None] & c_in[None, :]
        total = tl.load(dvalues_ptr + at, mask=mask, other=0.0).to(tl.float32)
        total = (total + tl.dot(keys, after, input_precision=PRECISION)).to(w.dtype)
        tl.store(total_ptr + at, total, mask=mask)
        read = tl.load(dstates_ptr + of_chunk, mask=held_in, other=0.0).to(tl.float32)
        dstate = read + dstate * _decay(b_ptr, tl.minimum((chunk + 1) * C, time) - 1, j, K, VECTOR)
        dstate -= tl.dot(tl.trans(w), total, input_precision=PRECISION)
    tl.store(dinitial_ptr + head * K * V + held, dstate, mask=held_in)


class Corrected(torch.autograd.Function):
    """`delta_rule.corrected` on a GPU."""

    @staticmethod
    @without_wgmma()
    def forward(
        ctx: Any, k_BGTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, g_BNTK: Tensor,
        initial_BNKV: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Corrected values, states before each chunk and the final state.

        Keys and values are of one dtype, which values and states get; the final state is float32.
        """
        k_BGTK, v_BNTV, g_BNTK = (unit_stride(x) for x in (k_BGTK, v_BNTV, g_BNTK))
        batch, heads, time, value_width = v_BNTV.shape
        key_width, num_chunks = k_BGTK.shape[3], triton.cdiv(time, CHUNK)
        b_BNTK = _cumulative(g_BNTK)
        a, w, u, keys = _prepare(k_BGTK, v_BNTV, beta_BNT, b_BNTK)
        values = torch.empty_like(u)
        states = u.new_empty(batch, heads, num_chunks, key_width, value_width)
        final = b_BNTK.new_empty(batch, heads, key_width, value_width)
        initial = None if initial_BNKV is None else initial_BNKV.float().contiguous()
        _carry_kernel[carry_grid(batch * heads, value_width)](
            w, u, keys, b_BNTK, initial, values, states, final, time, num_chunks,
            INITIAL=initial is not None, **carry_options(k_BGTK, v_BNTV, b_BNTK),
        )  # fmt: skip
        ctx.save_for_backward(k_BGTK, v_BNTV, beta_BNT, b_BNTK, a, w, keys, values, states)
        ctx.initial_dtype = None if initial_BNKV is None else initial_BNKV.dtype
        return values, states, final

    @staticmethod
    @once_differentiable
    @without_wgmma()
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of keys, values, write strengths, log-decays and the initial state."""
        k, v, beta, b, a, w, keys, values, states = ctx.saved_tensors
        dvalues, dstates, dfinal = (grad.contiguous() for grad in grads)
        total, after, dinitial = (torch.empty_like(x) for x in (values, states, dfinal))
        _carry_back_kernel[carry_grid(v.shape[0] * v.shape[1], v.shape[3])](
            w, keys, b, dvalues, dstates, dfinal, total, after, dinitial, v.shape[2],
            states.shape[2], **carry_options(k, v, b),
        )  # fmt: skip
        gradients = chunk_gradients(k, v, beta, b, a, values, states, total, after)
        if ctx.initial_dtype is None:
            return *gradients, None
        return *gradients, dinitial.to(ctx.initial_dtype)


def unit_stride(x: Tensor) -> Tensor:
    """`x`, copied if its last dimension is not dense."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def carry_options(k: Tensor, v: Tensor, b: Tensor) -> dict[str, Any]:
    """Constants of the kernels that go through the chunks."""
    return widths(k) | {
        "V": v.shape[3],
        "BLOCK_V": _carried_values(v.shape[0] * v.shape[1], v.shape[3]),
        "VECTOR": b.shape[3] > 1,
        "num_warps": 4,
        "num_stages": 2 if k.shape[3] > 64 or k.dtype == torch.float32 else 3,
    }


def carry_grid(rows: int, value_width: int) -> tuple[int, int]:
    """One program for each head and block of values."""
    return rows, triton.cdiv(value_width, _carried_values(rows, value_width))


def _carried_values(rows: int, value_width: int) -> int:
    """Values to a program: few where heads alone would leave multiprocessors idle."""
    return 32 if rows * triton.cdiv(value_width, 32) >= 128 else 16


def _cumulative(g_BNTK: Tensor) -> Tensor:
    batch, heads, time, width = g_BNTK.shape
    b_BNTK = torch.empty(g_BNTK.shape, dtype=torch.float32, device=g_BNTK.device)
    num_chunks = triton.cdiv(time, CHUNK)
    _cumulate_kernel[(batch * heads * num_chunks,)](
        g_BNTK, b_BNTK, time, num_chunks, heads, *g_BNTK.stride()[:3],
        K=width, C=CHUNK, BLOCK_K=triton.next_power_of_2(width),
    )  # fmt: skip
    return b_BNTK


def _prepare(
    k_BGTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, b_BNTK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each chunk: inverse (B, N, n, C, C), w and keys (B, N, T, K), u (B, N, T, V)."""
    batch, heads, time, value_width = v_BNTV.shape
    num_chunks = triton.cdiv(time, CHUNK)
    lower = b_BNTK.new_empty(batch, heads, num_chunks, CHUNK, CHUNK)
    a = torch.empty_like(lower, dtype=k_BGTK.dtype)
    w, keys = k_BGTK.new_empty(2, batch, heads, time, k_BGTK.shape[3]).unbind(0)
    u = k_BGTK.new_empty(v_BNTV.shape)
    grid = (batch * heads * num_chunks,)
    sizes = time, num_chunks, heads, heads // k_BGTK.shape[1]
    constants = widths(k_BGTK) | {"VECTOR": b_BNTK.shape[3] > 1, "num_warps": 4, "num_stages": 1}
    _system_kernel[grid](
        k_BGTK, beta_BNT, b_BNTK, lower, *sizes, *k_BGTK.stride()[:3], *beta_BNT.stride(),
        LEVELS=LEVELS, **constants,
    )  # fmt: skip
    _inverse_kernel[grid](lower, a, C=CHUNK, num_warps=1)
    _apply_kernel[grid](
        k_BGTK, v_BNTV, beta_BNT, b_BNTK, a, w, u, keys, *sizes,
        *k_BGTK.stride()[:3], *v_BNTV.stride()[:3], *beta_BNT.stride(),
        V=value_width, BLOCK_V=padded_width(value_width), **constants,
    )  # fmt: skip
    return a, w, u, keys
