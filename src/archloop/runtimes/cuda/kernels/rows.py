"""Work on rows of activations: norms, gates, short convolution, greedy choice.

Each kernel makes one pass over device memory where the plain form makes two to five.

Shape suffixes: B batch, T time, X flattened tokens, D width, F hidden width, V vocabulary,
L past inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from archloop.runtimes.cuda.choice import Choice


@triton.jit
def norm_kernel(x, weight, out, eps, D: tl.constexpr, BLOCK: tl.constexpr):
    """One row of `blocks.norms.RMSNorm`."""
    row = tl.program_id(0).to(tl.int64) * D
    cols = tl.arange(0, BLOCK)
    value = tl.load(x + row + cols, mask=cols < D, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / D + eps)
    value *= scale * tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)
    tl.store(out + row + cols, value.to(out.dtype.element_ty), mask=cols < D)


@triton.jit
def add_normed_kernel(
    x, y, weight, out, next_weight, eps, next_eps,
    D: tl.constexpr, BLOCK: tl.constexpr, HAS_NEXT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Adds one row of `blocks.norms.RMSNorm` to the stream, and norms the sum for who reads it.

    Everything is rounded as the plain norm and sum round it.
    """
    row = tl.program_id(0).to(tl.int64) * D
    cols = tl.arange(0, BLOCK)
    factor = tl.load(weight + cols, mask=cols < D, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    value = tl.load(y + row + cols, mask=cols < D, other=0.0).to(tl.float32)
    held = tl.load(x + row + cols, mask=cols < D, other=0.0)
    if PDL:
        gdc_launch_dependents()
    value *= tl.rsqrt(tl.sum(value * value, 0) / D + eps) * factor
    total = (held.to(tl.float32) + value.to(held.dtype).to(tl.float32)).to(held.dtype)
    tl.debug_barrier()
    tl.store(x + row + cols, total, mask=cols < D)
    if HAS_NEXT:
        total = total.to(tl.float32)
        total *= tl.rsqrt(tl.sum(total * total, 0) / D + next_eps)
        total *= tl.load(next_weight + cols, mask=cols < D, other=0.0).to(tl.float32)
        tl.store(out + row + cols, total.to(out.dtype.element_ty), mask=cols < D)


@triton.jit
def gate_heads_kernel(x, gate, N: tl.constexpr, H: tl.constexpr, BLOCK_N: tl.constexpr):
    """``x[n] *= sigmoid(gate[n])`` for BLOCK_N heads of a row."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    places = x + row * (N * H) + n[:, None] * H + tl.arange(0, H)[None, :]
    share = tl.sigmoid(tl.load(gate + row * N + n, mask=n < N, other=0.0).to(tl.float32))
    value = tl.load(places, mask=(n < N)[:, None], other=0.0)
    scaled = value.to(tl.float32) * share.to(value.dtype).to(tl.float32)[:, None]
    tl.store(places, scaled.to(value.dtype), mask=(n < N)[:, None])


@triton.jit
def silu_mul_kernel(x, out, F: tl.constexpr, BLOCK: tl.constexpr):
    """``out[f] = silu(x[f]) * x[F + f]`` for part of a row."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * 2 * F + f, mask=f < F, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * F + F + f, mask=f < F, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + row * F + f, y.to(out.dtype.element_ty), mask=f < F)


@triton.jit
def gated(x, row, cols, inside, D: tl.constexpr):
    """``b * u`` of tokens, rounded as the state keeps it."""
    b = tl.load(x + row * (3 * D) + cols, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x + row * (3 * D) + 2 * D + cols, mask=inside, other=0.0).to(tl.float32)
    return (b * u).to(x.dtype.element_ty)


@triton.jit
def conv_kernel(
    x,
    conv_weight,
    past,
    out,
    past_out,
    T,
    D: tl.constexpr,
    KERNEL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``c * conv(b * u)`` of BLOCK_T tokens and BLOCK_D channels, and the state after them."""
    L: tl.constexpr = KERNEL - 1
    batch = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    row, valid = batch * T + t, (t < T) & (d < D)
    z = gated(x, row, d, valid, D)
    acc = z.to(tl.float32) * tl.load(conv_weight + d * KERNEL + L, mask=d < D).to(tl.float32)
    for back in tl.static_range(1, KERNEL):
        before = gated(x, row - back, d, valid & (t >= back), D)
        held = past + (batch * L + t - back + L) * D + d
        older = tl.load(held, mask=valid & (t < back), other=0.0)
        term = tl.where(t < back, older, before).to(tl.float32)
        acc += term * tl.load(conv_weight + d * KERNEL + L - back, mask=d < D).to(tl.float32)
    c = tl.load(x + row * (3 * D) + D + d, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, (c * acc).to(out.dtype.element_ty), mask=valid)
    # Slot j of the new state is token T - L + j; slots before the first token come from the old.
    slot = t - (T - L)
    tl.store(past_out + (batch * L + slot) * D + d, z, mask=valid & (slot >= 0))
    for j in tl.static_range(0, L):
        kept = (tl.program_id(1) == 0) & (j + T < L) & (d < D)
        older = tl.load(past + (batch * L + j + T) * D + d, mask=kept, other=0.0)
        tl.store(past_out + (batch * L + j) * D + d, older, mask=kept)


@triton.jit
def conv_step_kernel(
    x, conv_weight, past, out, D: tl.constexpr, KERNEL: tl.constexpr, BLOCK_D: tl.constexpr
):
    """`conv_kernel` for one token per row, with the state shifted in place."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = d < D
    z = gated(x, row, d, valid, D)
    state, taps = past + row * ((KERNEL - 1) * D) + d, conv_weight + d * KERNEL
    acc = z.to(tl.float32) * tl.load(taps + KERNEL - 1, mask=valid, other=0.0).to(tl.float32)
    for j in tl.static_range(0, KERNEL - 1):
        older = tl.load(state + j * D, mask=valid, other=0.0)
        acc += older.to(tl.float32) * tl.load(taps + j, mask=valid, other=0.0).to(tl.float32)
        if j > 0:
            tl.debug_barrier()
            tl.store(state + (j - 1) * D, older, mask=valid)
    tl.debug_barrier()
    tl.store(state + (KERNEL - 2) * D, z, mask=valid)
    c = tl.load(x + row * (3 * D) + D + d, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, (c * acc).to(out.dtype.element_ty), mask=valid)


@triton.jit
def largest(value):
    """The largest of some numbers; NaN if one of them is, which a maximum would pass over."""
    return tl.where(tl.max((value != value).to(tl.int32), 0) > 0, float("nan"), tl.max(value, 0))


@triton.jit
def best_of_part_kernel(
    logits, best, where, V: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """Largest logit in part of a row, and the first place that has it; NaN where there is any."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = part * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * V + v, mask=v < V, other=float("-inf")).to(tl.float32)
    top = largest(value)
    tl.store(best + row * PARTS + part, top)
    tl.store(where + row * PARTS + part, tl.min(tl.where(value == top, v, V), 0))


@triton.jit
def best_of_row_kernel(
    best, where, ids, said, turns, lengths, B,
    V: tl.constexpr, PARTS: tl.constexpr, PARTS_PAD: tl.constexpr,
):  # fmt: skip
    """Join the parts of a row (`runtimes.cuda.choice`), and count the row's token as read.

    Where there is no largest number the id is any.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS_PAD)
    value = tl.load(best + row * PARTS + part, mask=part < PARTS, other=float("-inf"))
    place = tl.load(where + row * PARTS + part, mask=part < PARTS, other=V)
    top = largest(value)
    first = tl.min(tl.where(value == top, place, V), 0)
    chosen, turn = tl.minimum(first, V - 1).to(tl.int64), tl.load(turns + row)
    tl.store(ids + row, chosen)
    told = said + (turn % 2) * (2 * B) + row
    tl.store(told, chosen.to(tl.float64))
    tl.store(told + B, top.to(tl.float64))
    tl.store(turns + row, turn + 1)
    tl.store(lengths + row, tl.load(lengths + row) + 1)


# --- launching --------------------------------------------------------------------------------


def norm(x_XD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """`F.rms_norm` over the last dimension, of contiguous rows."""
    out_XD, width = torch.empty_like(x_XD), x_XD.shape[-1]
    num_rows = x_XD.numel() // width
    norm_kernel[(num_rows,)](
        x_XD, weight_D, out_XD, eps, width, triton.next_power_of_2(width), num_warps=4
    )
    return out_XD


def add_normed(
    x_XD: Tensor,
    y_XD: Tensor,
    norm: tuple[Tensor, float],
    *,
    after: tuple[Tensor, float] | None = None,
    pdl: bool = False,
) -> Tensor | None:
    """``x += rms_norm(y)`` over the last dimension, of contiguous rows.

    With `pdl` it may start while the kernel before it drains (`kernels.gemv`).

    Returns:
        The sum normed by `after`, if that is given.
    """
    width, out_XD = x_XD.shape[-1], None if after is None else torch.empty_like(x_XD)
    next_weight, next_eps = after or norm
    add_normed_kernel[(x_XD.numel() // width,)](
        x_XD, y_XD, norm[0], x_XD if out_XD is None else out_XD, next_weight, norm[1], next_eps,
        width, triton.next_power_of_2(width), after is not None, pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return out_XD


def gate_heads(x_Xd: Tensor, gate_XN: Tensor) -> None:
    """Scale heads, side by side in contiguous rows, by the sigmoids of their gates, in place.

    Heads are as wide as a power of two.
    """
    num_rows, num_heads = gate_XN.shape
    head_dim = x_Xd.shape[1] // num_heads
    block = max(1, 2048 // head_dim)
    grid = (num_rows, triton.cdiv(num_heads, block))
    gate_heads_kernel[grid](x_Xd, gate_XN, num_heads, head_dim, block, num_warps=4)


def silu_mul(x_XF: Tensor) -> Tensor:
    """``silu(gate) * up`` of rows that hold gate and up side by side, (X, 2F) to (X, F)."""
    num_rows, hidden = x_XF.shape[0], x_XF.shape[1] // 2
    out_XF = x_XF.new_empty(num_rows, hidden)
    block = min(2048, triton.next_power_of_2(hidden))
    grid = (num_rows, triton.cdiv(hidden, block))
    silu_mul_kernel[grid](x_XF, out_XF, hidden, block, num_warps=4)
    return out_XF


def conv(x_BTD: Tensor, conv_weight_DK: Tensor, past_BLD: Tensor) -> Tensor:
    """``c * conv(b * u)`` of projected inputs (B, T, 3D); advances `past_BLD` in place."""
    batch, time, _ = x_BTD.shape
    width, kernel = conv_weight_DK.shape
    out_BTD = x_BTD.new_empty(batch, time, width)
    past_out_BLD = torch.empty_like(past_BLD)
    block_t, block_d = 16, min(256, triton.next_power_of_2(width))
    grid = (batch, triton.cdiv(time, block_t), triton.cdiv(width, block_d))
    conv_kernel[grid](
        x_BTD, conv_weight_DK, past_BLD, out_BTD, past_out_BLD, time, width, kernel,
        block_t, block_d, num_warps=4,
    )  # fmt: skip
    past_BLD.copy_(past_out_BLD)
    return out_BTD


def conv_step(x_BD: Tensor, conv_weight_DK: Tensor, past_BLD: Tensor) -> Tensor:
    """`conv` for one token per row: projected inputs (B, 3D) to (B, D)."""
    batch, (width, kernel) = x_BD.shape[0], conv_weight_DK.shape
    out_BD = x_BD.new_empty(batch, width)
    block = min(1024, triton.next_power_of_2(width))
    grid = (batch, triton.cdiv(width, block))
    conv_step_kernel[grid](
        x_BD, conv_weight_DK, past_BLD, out_BD, width, kernel, block, num_warps=4
    )
    return out_BD


def choose_greedily(logits_BV: Tensor, choice: Choice, lengths_B: Tensor) -> None:
    """Take each row's most likely id, and add one to `lengths_B`."""
    batch, vocab = logits_BV.shape
    block = 2048
    parts = triton.cdiv(vocab, block)
    best_BP = logits_BV.new_empty(batch, parts, dtype=torch.float32)
    where_BP = logits_BV.new_empty(batch, parts, dtype=torch.int32)
    best_of_part_kernel[(batch, parts)](
        logits_BV, best_BP, where_BP, vocab, parts, block, num_warps=4
    )
    best_of_row_kernel[(batch,)](
        best_BP, where_BP, choice.ids_B, choice.told_22B, choice.turns_B, lengths_B, batch,
        vocab, parts, triton.next_power_of_2(parts), num_warps=1,
    )  # fmt: skip
