"""Attention over a KV cache: QK-norm if any, RoPE and the cache write fused into their neighbours.

Decoding one token reads the cache once. A program serves one KV head of one row, so the G query
heads of a group share what it reads, and with few rows the context is split between programs whose
partial results are joined afterwards (flash-decoding, arXiv 2311.01282). Nothing beyond a row's
length is read, whatever the cache's size.

Shape suffixes: B batch, T time, X flattened tokens, N query heads, M KV heads, H head width,
C cache slots, P parts of the context.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from archloop.blocks.ops.rope import Rope, frequencies


@triton.jit
def normed_rotated(low, high, weight, cos, sin, eps, H: tl.constexpr, NORMED: tl.constexpr):
    """QK-norm, where there is one, and rotate-half RoPE of heads given as halves (heads, H/2)."""
    if NORMED:
        half = tl.arange(0, H // 2)
        scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / H + eps)[:, None]
        low *= scale * tl.load(weight + half).to(tl.float32)[None, :]
        high *= scale * tl.load(weight + H // 2 + half).to(tl.float32)[None, :]
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def store_kernel(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    k_cache,
    v_cache,
    lengths,
    real,
    T,
    C,
    eps,
    N: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    N_PAD: tl.constexpr,
    M_PAD: tl.constexpr,
    NORMED: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS_TOO: tl.constexpr,
):
    """One token: queries normed and rotated in place, keys and values into the cache.

    A cache of fewer slots than tokens is a ring, which keeps the last of those that are no padding.
    KEYS_TOO: keys are also left in place.
    """
    token = tl.program_id(0).to(tl.int64)
    batch = token // T
    position = tl.load(lengths + batch) + token % T
    half = tl.arange(0, H // 2)[None, :]
    cos_h = tl.load(cos + position * (H // 2) + half)
    sin_h = tl.load(sin + position * (H // 2) + half)
    row = qkv + token * ((N + 2 * M) * H)
    n, m = tl.arange(0, N_PAD)[:, None], tl.arange(0, M_PAD)[:, None]
    low = tl.load(row + n * H + half, mask=n < N, other=0.0).to(tl.float32)
    high = tl.load(row + n * H + H // 2 + half, mask=n < N, other=0.0).to(tl.float32)
    low, high = normed_rotated(low, high, q_weight, cos_h, sin_h, eps, H, NORMED)
    tl.store(row + n * H + half, low.to(qkv.dtype.element_ty), mask=n < N)
    tl.store(row + n * H + H // 2 + half, high.to(qkv.dtype.element_ty), mask=n < N)
    keys = row + N * H
    low = tl.load(keys + m * H + half, mask=m < M, other=0.0).to(tl.float32)
    high = tl.load(keys + m * H + H // 2 + half, mask=m < M, other=0.0).to(tl.float32)
    low, high = normed_rotated(low, high, k_weight, cos_h, sin_h, eps, H, NORMED)
    if KEYS_TOO:
        tl.store(keys + m * H + half, low.to(qkv.dtype.element_ty), mask=m < M)
        tl.store(keys + m * H + H // 2 + half, high.to(qkv.dtype.element_ty), mask=m < M)
    slot = ((batch * M + m) * C + position % C) * H + half
    end = T
    if PADDED:
        end = tl.load(real + batch).to(tl.int32)
    kept = (m < M) & (token % T < end) & (token % T + C >= end)
    tl.store(k_cache + slot, low.to(k_cache.dtype.element_ty), mask=kept)
    tl.store(k_cache + slot + H // 2, high.to(k_cache.dtype.element_ty), mask=kept)
    low = tl.load(keys + (M + m) * H + half, mask=m < M, other=0.0)
    high = tl.load(keys + (M + m) * H + H // 2 + half, mask=m < M, other=0.0)
    tl.store(v_cache + slot, low.to(v_cache.dtype.element_ty), mask=kept)
    tl.store(v_cache + slot + H // 2, high.to(v_cache.dtype.element_ty), mask=kept)


@triton.jit
def attend(
    q_low,
    q_high,
    keys,
    values,
    start,
    stop,
    skipped,
    top,
    total,
    acc,
    scale,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take cache slots start to stop into a running softmax: its maximum, sum and output.

    All but one that is `skipped`, if it is among them.
    """
    half, full = tl.arange(0, H // 2)[None, :], tl.arange(0, H)[None, :]
    for at in range(start, stop, BLOCK):
        s = at + tl.arange(0, BLOCK)
        inside = (s < stop)[:, None]
        rows = s[:, None] * H
        k_a = tl.load(keys + rows + half, mask=inside, other=0.0)
        k_b = tl.load(keys + rows + H // 2 + half, mask=inside, other=0.0)
        v = tl.load(values + rows + full, mask=inside, other=0.0)
        score = tl.dot(q_low, tl.trans(k_a)) + tl.dot(q_high, tl.trans(k_b))
        seen = (s < stop) & (s != skipped)
        score = tl.where(seen[None, :], score * (scale * 1.4426950408889634), -1e30)
        new_top = tl.maximum(top, tl.max(score, 1))
        fade = tl.exp2(top - new_top)
        weight = tl.exp2(score - new_top[:, None])
        total = total * fade + tl.sum(weight, 1)
        acc = acc * fade[:, None] + tl.dot(weight.to(q_low.dtype), v)
        top = new_top
    return top, total, acc


@triton.jit
def step_kernel(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    k_cache,
    v_cache,
    lengths,
    gate,
    out,
    part_max,
    part_sum,
    part_out,
    C,
    eps,
    scale,
    N: tl.constexpr,
    M: tl.constexpr,
    H: tl.constexpr,
    G_PAD: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORMED: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One new token of one row and KV head, against part of its context.

    A cache of fewer slots than there are tokens is a ring, where the new token takes the slot of
    the oldest, which it no longer sees.
    """
    G: tl.constexpr = N // M
    batch, head = (tl.program_id(0) // M).to(tl.int64), tl.program_id(0) % M
    part = tl.program_id(1)
    length = tl.load(lengths + batch)
    half, full = tl.arange(0, H // 2)[None, :], tl.arange(0, H)[None, :]
    cos_h = tl.load(cos + length * (H // 2) + half)
    sin_h = tl.load(sin + length * (H // 2) + half)
    g = tl.arange(0, G_PAD)
    if PDL:
        gdc_wait()
    row = qkv + batch * ((N + 2 * M) * H)
    dtype = qkv.dtype.element_ty
    heads = row + (head * G + g)[:, None] * H
    low = tl.load(heads + half, mask=(g < G)[:, None], other=0.0).to(tl.float32)
    high = tl.load(heads + H // 2 + half, mask=(g < G)[:, None], other=0.0).to(tl.float32)
    low, high = normed_rotated(low, high, q_weight, cos_h, sin_h, eps, H, NORMED)
    q_low, q_high = low.to(dtype), high.to(dtype)
    keys = row + (N + head) * H
    low = tl.load(keys + half).to(tl.float32)
    high = tl.load(keys + H // 2 + half).to(tl.float32)
    low, high = normed_rotated(low, high, k_weight, cos_h, sin_h, eps, H, NORMED)
    k_low, k_high = low.to(dtype), high.to(dtype)
    v_new = tl.load(row + (N + M + head) * H + full)
    cache = (batch * M + head) * C * H
    # The first part also takes the new token itself; its cache slot is read by later steps only.
    own = tl.sum(q_low.to(tl.float32) * k_low.to(tl.float32), 1)
    own = (own + tl.sum(q_high.to(tl.float32) * k_high.to(tl.float32), 1)) * (
        scale * 1.4426950408889634
    )
    first = part == 0
    top = tl.where(first, own, -1e30)
    total = tl.where(first, tl.full((G_PAD,), 1.0, tl.float32), 0.0)
    acc = tl.zeros((G_PAD, H), tl.float32) + tl.where(first, v_new.to(tl.float32), 0.0)
    if first:
        slot = cache + length % C * H
        tl.store(k_cache + slot + half, k_low)
        tl.store(k_cache + slot + H // 2 + half, k_high)
        tl.store(v_cache + slot + full, v_new)
    held = tl.minimum(length, C)
    skipped = tl.where(length < C, -1, length % C)
    blocks = tl.cdiv(tl.cdiv(held, BLOCK), PARTS)
    start = part * blocks * BLOCK
    stop = tl.minimum(start + blocks * BLOCK, held)
    top, total, acc = attend(
        q_low, q_high, k_cache + cache, v_cache + cache, start, stop, skipped, top, total, acc,
        scale, H, BLOCK,
    )  # fmt: skip
    if PDL:
        gdc_launch_dependents()
    head_row = batch * N + head * G + g
    if PARTS == 1:
        y = acc / total[:, None]
        if GATED:
            y *= tl.sigmoid(tl.load(gate + head_row, mask=g < G, other=0.0).to(tl.float32))[:, None]
        y = y.to(out.dtype.element_ty)
        tl.store(out + head_row[:, None] * H + full, y, mask=(g < G)[:, None])
    else:
        place = head_row * PARTS + part
        tl.store(part_max + place, top, mask=g < G)
        tl.store(part_sum + place, total, mask=g < G)
        tl.store(part_out + place[:, None] * H + full, acc, mask=(g < G)[:, None])


@triton.jit
def join_kernel(
    part_max,
    part_sum,
    part_out,
    gate,
    out,
    H: tl.constexpr,
    PARTS: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Join the parts of one row and query head."""
    if PDL:
        gdc_wait()
    head = tl.program_id(0).to(tl.int64)
    part, h = tl.arange(0, PARTS), tl.arange(0, H)
    top = tl.load(part_max + head * PARTS + part)
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(part_sum + head * PARTS + part), 0)
    value = tl.load(part_out + (head * PARTS + part[:, None]) * H + h[None, :])
    if PDL:
        gdc_launch_dependents()
    y = tl.sum(value * weight[:, None], 0) / total
    if GATED:
        y *= tl.sigmoid(tl.load(gate + head).to(tl.float32))
    tl.store(out + head * H + h, y.to(out.dtype.element_ty))


# --- launching --------------------------------------------------------------------------------


def rope_tables(
    max_context: int, head_dim: int, theta: float | Rope, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and frequency, float32 (C, H/2), as `ops.rope`."""
    angles = torch.arange(max_context, device=device, dtype=torch.float32)[:, None]
    angles = angles * frequencies(head_dim // 2, theta, torch.float32, device)
    return angles.cos(), angles.sin()


Norms = tuple[Tensor, Tensor, float]
"""Weights of the query and of the key norm, and their epsilon."""


def store(
    qkv_BTH: Tensor,
    norms: Norms | None,
    tables: tuple[Tensor, Tensor],
    k_BMCH: Tensor,
    v_BMCH: Tensor,
    lengths_B: Tensor,
    *,
    real_B: Tensor | None = None,
    keys_too: bool = False,
) -> None:
    """QK-norm and RoPE on projected tokens; queries stay in place, keys and values are cached.

    Args:
        qkv_BTH: contiguous projections, last dimension (N + 2M) H.
        norms: of each query and key; None: none.
        tables: from `rope_tables`.
        k_BMCH: key cache; token t of row b goes to slot ``lengths_B[b] + t``, modulo the slots,
            unless a later token of the call takes it.
        v_BMCH: value cache, likewise.
        lengths_B: tokens already held.
        real_B: tokens of each row that are no padding, which is on the right; None: all.
        keys_too: leave keys in place as well, as queries.
    """
    batch, time, width = qkv_BTH.shape
    _, num_kv, slots, head_dim = k_BMCH.shape
    num_heads = width // head_dim - 2 * num_kv
    q_weight, k_weight, eps = norms or (*tables, 0.0)  # Addresses that are not read.
    store_kernel[(batch * time,)](
        qkv_BTH, q_weight, k_weight, *tables, k_BMCH, v_BMCH, lengths_B,
        lengths_B if real_B is None else real_B, time, slots, eps,
        num_heads, num_kv, head_dim, triton.next_power_of_2(num_heads),
        triton.next_power_of_2(num_kv), norms is not None, real_B is not None, keys_too,
        num_warps=4,
    )  # fmt: skip


def num_parts(batch: int, num_kv: int, slots: int) -> int:
    """Into how many parts to split each context so that the programs fill a GPU.

    A longer cache takes more parts: programs of equal length that do not all start at once leave
    processors idle at the end, the longer each is.
    """
    parts, most = 1, 4 if slots <= 512 else 16 if slots <= 12288 else 32 if slots <= 49152 else 64
    while parts < most and batch * num_kv * parts < 8 * most:
        parts *= 2
    return parts


def step(
    qkv_BH: Tensor,
    norms: Norms | None,
    tables: tuple[Tensor, Tensor],
    k_BMCH: Tensor,
    v_BMCH: Tensor,
    lengths_B: Tensor,
    scale: float,
    *,
    gate_BN: Tensor | None = None,
    block: int = 64,
    warps: int = 4,
    stages: int = 3,
    parts: int | None = None,
    pdl: bool = False,
) -> Tensor:
    """Attention of one new token per row, whose key and value are added to the cache.

    Arguments as `store`, for projections (B, (N + 2M) H); each head's output is scaled by the
    sigmoid of its gate, if there are gates. Returns (B, N H).
    """
    batch, width = qkv_BH.shape
    _, num_kv, slots, head_dim = k_BMCH.shape
    num_heads = width // head_dim - 2 * num_kv
    parts = parts or num_parts(batch, num_kv, slots)
    out_BNH = qkv_BH.new_empty(batch, num_heads * head_dim)
    # Addresses that are not read, where there are no gates or no norms.
    gate = out_BNH if gate_BN is None else gate_BN
    q_weight, k_weight, eps = norms or (*tables, 0.0)
    shape = (batch * num_heads, parts) if parts > 1 else (1, 1)
    part_max, part_sum = (qkv_BH.new_empty(shape, dtype=torch.float32) for _ in range(2))
    part_out = qkv_BH.new_empty(*shape, head_dim, dtype=torch.float32)
    step_kernel[(batch * num_kv, parts)](
        qkv_BH, q_weight, k_weight, *tables, k_BMCH, v_BMCH, lengths_B, gate, out_BNH,
        part_max, part_sum, part_out, slots, eps, scale, num_heads, num_kv, head_dim,
        max(16, triton.next_power_of_2(num_heads // num_kv)), parts, block,
        norms is not None, gate_BN is not None, pdl,
        num_warps=warps, num_stages=stages, launch_pdl=pdl,
    )  # fmt: skip
    if parts > 1:
        join_kernel[(batch * num_heads,)](
            part_max, part_sum, part_out, gate, out_BNH, head_dim, parts, gate_BN is not None, pdl,
            num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
    return out_BNH
