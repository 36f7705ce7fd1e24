"""`ops.attention.attention_step` on a GPU: one query token a row, the cache read once and in parts.

A program serves query heads that share a KV head, so they share what it reads; the slots in use are
split between programs whose partial results are joined afterwards (flash-decoding, arXiv
2311.01282). Nothing behind a row's last slot is read, whatever the cache's size. Keys may be wider
than values and both may be views of one tensor, as latents are. No backward: a decode step is not
trained through. Imported only where Triton is installed.

Shape suffixes: B batch, M KV heads, G query heads of each, S slots, K key width, V value width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264
"""Programs that fill a large GPU, two for each of its processors."""
MOST_PARTS = 64
SLOTS_OF_A_PART = 128
"""Fewer are not worth a program."""
WIDEST = 1024
"""Keys and values that a program's registers and shared memory hold."""


@triton.jit
def _part_kernel(
    q_ptr, k_ptr, v_ptr, last_ptr, top_ptr, sum_ptr, out_ptr,
    q_b, q_m, q_g, k_b, k_m, k_s, v_b, v_m, v_s, scale, M, G, S,
    K: tl.constexpr, V: tl.constexpr, VP: tl.constexpr, CHUNK: tl.constexpr, GP: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and unscaled output of some query heads over one part of the slots in use."""
    row = tl.program_id(0).to(tl.int64)
    batch, m = row // M, row % M
    part = tl.program_id(1)
    g = tl.program_id(2) * GP + tl.arange(0, GP)
    c, w, offset = tl.arange(0, CHUNK), tl.arange(0, VP), tl.arange(0, BLOCK)
    used = tl.minimum(tl.load(last_ptr + batch).to(tl.int32) + 1, S)
    blocks = tl.cdiv(tl.cdiv(used, BLOCK), PARTS)
    start = part * blocks * BLOCK
    stop = tl.minimum(start + blocks * BLOCK, used)
    queries = q_ptr + batch * q_b + m * q_m + g[:, None] * q_g
    keys, values = k_ptr + batch * k_b + m * k_m, v_ptr + batch * v_b + m * v_m
    top = tl.full((GP,), -1e30, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    out = tl.zeros((GP, VP), tl.float32)
    for at in range(start, stop, BLOCK):
        s = at + offset
        inside, place = s < stop, s.to(tl.int64)
        score = tl.zeros((GP, BLOCK), tl.float32)
        for first in tl.static_range(0, K, CHUNK):
            k = first + c
            mask_q = (g < G)[:, None] & (k < K)[None, :]
            mask_k = (k < K)[:, None] & inside[None, :]
            q = tl.load(queries + k[None, :], mask=mask_q, other=0.0)
            key = tl.load(keys + place[None, :] * k_s + k[:, None], mask=mask_k, other=0.0)
            score += tl.dot(q, key, input_precision="ieee")
        score = tl.where(inside[None, :], score * (scale * 1.4426950408889634), -1e30)
        new_top = tl.maximum(top, tl.max(score, 1))
        fade, weight = tl.exp2(top - new_top), tl.exp2(score - new_top[:, None])
        mask_v = inside[:, None] & (w < V)[None, :]
        v = tl.load(values + place[:, None] * v_s + w[None, :], mask=mask_v, other=0.0)
        total = total * fade + tl.sum(weight, 1)
        out = out * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        top = new_top
    own = (row * G + g) * PARTS + part
    tl.store(top_ptr + own, top, mask=g < G)
    tl.store(sum_ptr + own, total, mask=g < G)
    mask_out = (g < G)[:, None] & (w < V)[None, :]
    tl.store(out_ptr + own[:, None] * V + w[None, :], out, mask=mask_out)


@triton.jit
def _join_kernel(
    top_ptr, sum_ptr, part_ptr, out_ptr,
    V: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The parts of one query head, some of its values."""
    head, part = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS)
    w = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    top = tl.load(top_ptr + head * PARTS + part)
    weight = tl.exp2(top - tl.max(top, 0))
    total = tl.sum(weight * tl.load(sum_ptr + head * PARTS + part), 0)
    at = (head * PARTS + part[:, None]) * V + w[None, :]
    value = tl.load(part_ptr + at, mask=(w < V)[None, :], other=0.0)
    y = tl.sum(value * weight[:, None], 0) / total
    tl.store(out_ptr + head * V + w, y.to(out_ptr.dtype.element_ty), mask=w < V)


def num_parts(programs: int, slots: int) -> int:
    """Into how many parts to split the slots, a power of 2."""
    parts = 1
    while parts < MOST_PARTS and programs * parts < PROGRAMS and parts * SLOTS_OF_A_PART < slots:
        parts *= 2
    return parts


def attention_step(
    q_BMGK: Tensor, k_BMSK: Tensor, v_BMSV: Tensor, last_B: Tensor, scale: float
) -> Tensor:
    """Outputs (B, M, G, V), as `ops.attention.attention_step`; widths up to `WIDEST`."""
    q_BMGK, k_BMSK, v_BMSV = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_BMGK, k_BMSK, v_BMSV)
    )
    # Positions may be one number for all rows, expanded; the kernel reads them one after another.
    last_B = last_B.contiguous()
    batch, num_kv, group, key_width = q_BMGK.shape
    slots, width = v_BMSV.shape[2:]
    is_wide = max(key_width, width) > 256
    heads = min(max(16, triton.next_power_of_2(group)), 16 if is_wide else 64)
    groups = triton.cdiv(group, heads)
    parts = num_parts(batch * num_kv * groups, slots)
    shape = (batch * num_kv * group, parts)
    top, total = (q_BMGK.new_empty(shape, dtype=torch.float32) for _ in range(2))
    out = q_BMGK.new_empty(*shape, width, dtype=torch.float32)
    _part_kernel[(batch * num_kv, parts, groups)](
        q_BMGK, k_BMSK, v_BMSV, last_B, top, total, out,
        *q_BMGK.stride()[:3], *k_BMSK.stride()[:3], *v_BMSV.stride()[:3], scale,
        num_kv, group, slots, key_width, width, max(16, triton.next_power_of_2(width)),
        min(128, max(16, triton.next_power_of_2(key_width))), heads, parts,
        32 if is_wide or q_BMGK.dtype == torch.float32 else 64,
        num_warps=8 if is_wide else 4, num_stages=2,
    )  # fmt: skip
    y_BMGV = q_BMGK.new_empty(batch, num_kv, group, width)
    chunk = min(128, triton.next_power_of_2(width))
    _join_kernel[(batch * num_kv * group, triton.cdiv(width, chunk))](
        top, total, out, y_BMGV, width, chunk, parts
    )
    return y_BMGV
