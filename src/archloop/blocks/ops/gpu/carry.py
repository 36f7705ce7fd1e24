"""What both chunked linear attentions share on a GPU: layouts, and the carry of gradients.

A kernel's operands are cast to the dtype of the values, sums are float32, and the state before each
chunk is stored in the dtype of the values, since it is only ever an operand. The state itself is
carried from chunk to chunk in registers, in float32.

Imported only where Triton is installed. Shape suffixes: as in `ops.chunks`; X the heads of all
rows, k channels with a decay of their own (K, or 1 where a head has one decay).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from archloop.blocks.ops.gpu.lengths import any_length

SMALLEST_CHUNK = 16
"""The least that a matrix unit multiplies."""
BLOCK = 1024


@triton.jit
def decay_sums(g_ptr, mask):
    """Log-decays (C, ...) summed from the start of the chunk; 0 where masked.

    Below -104, where ``e^g`` is 0 in float32, they count as that: greater sums would round away the
    weak decays that follow a strong one.
    """
    g = tl.load(g_ptr, mask=mask, other=0.0)
    return tl.cumsum(tl.where(g < -104.0, -104.0, g), 0)


@any_length()
def _carry_back_kernel(
    decay_ptr, grad_ptr, last_ptr, after_ptr, initial_ptr, num_chunks,
    K: tl.constexpr, V: tl.constexpr, DECAYS: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From the end: the gradient of the state after each chunk, and of the state at the start."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < K * V
    decays = (at // V) % DECAYS
    grad = tl.zeros([BLOCK], dtype=tl.float32)
    if LAST:
        grad = tl.load(last_ptr + row * K * V + at, mask=mask, other=0.0)
    for back in range(num_chunks):
        chunk = row * num_chunks + num_chunks - 1 - back
        tl.store(after_ptr + chunk * K * V + at, grad.to(after_ptr.dtype.element_ty), mask=mask)
        decay = tl.load(decay_ptr + chunk * DECAYS + decays, mask=mask, other=0.0)
        own = tl.load(grad_ptr + chunk * K * V + at, mask=mask, other=0.0).to(tl.float32)
        grad = grad * tl.exp(decay) + own
    tl.store(initial_ptr + row * K * V + at, grad, mask=mask)


def carry_back(
    decay_BNnk: Tensor, grad_BNnKV: Tensor, last_BNKV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the state after each chunk (B, N, n, K, V) and of the initial state.

    Args:
        decay_BNnk: log-decay of each chunk, float32.
        grad_BNnKV: gradient of the state before each chunk.
        last_BNKV: gradient of the final state.
    """
    batch, heads, num_chunks, keys, values = grad_BNnKV.shape
    decay_BNnk, grad_BNnKV = decay_BNnk.contiguous(), grad_BNnKV.contiguous()
    after_BNnKV = torch.empty_like(grad_BNnKV)
    initial_BNKV = grad_BNnKV.new_empty(batch, heads, keys, values, dtype=torch.float32)
    last = initial_BNKV if last_BNKV is None else last_BNKV.contiguous()
    grid = batch * heads, triton.cdiv(keys * values, BLOCK)
    _carry_back_kernel[grid](
        decay_BNnk, grad_BNnKV, last, after_BNnKV, initial_BNKV, num_chunks,
        K=keys, V=values, DECAYS=decay_BNnk.shape[-1], LAST=last_BNKV is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return after_BNnKV, initial_BNKV


def dense_rows(x: Tensor) -> Tensor:
    """`x` with its last dimension contiguous; other strides may be any."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(*tensors: Tensor) -> list[int]:
    """Steps along batch, heads and time of each."""
    return [step for x in tensors for step in x.stride()[:3]]


def by_token(like_BNTX: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """An empty (B, N, T, width) whose memory is (B, T, N, width), as projections read it."""
    batch, heads, time = like_BNTX.shape[:3]
    return like_BNTX.new_empty(batch, time, heads, width, dtype=dtype).transpose(1, 2)


def total(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over dimension 0, one part for each block of key channels."""
    return (parts[0] if parts.shape[0] == 1 else parts.sum(0)).to(dtype)


def value_parts(v_BNTV: Tensor, parts: int) -> Tensor:
    """Room for gradients of the values, (parts, B, N, T, V): float32 where they are added up."""
    batch, heads, time, values = v_BNTV.shape
    dtype = v_BNTV.dtype if parts == 1 else torch.float32
    return v_BNTV.new_empty(parts, batch, time, heads, values, dtype=dtype).transpose(2, 3)


def tile(width: int, largest: int = 64) -> int:
    """Block length along a width: a power of two that the matrix unit takes."""
    return min(max(1 << (width - 1).bit_length(), 16), largest)


def widest(dtype: torch.dtype, width: int) -> int:
    """The largest tile for operands of `dtype`: float32 takes twice the room and three products."""
    return width // 2 if dtype == torch.float32 else width


def arithmetic(dtype: torch.dtype, num_warps: int = 4) -> dict[str, Any]:
    """How a kernel multiplies operands of `dtype`, and with how many warps.

    Float32 stays off the matrix units, which would round it to tf32.
    """
    if dtype == torch.float32:
        return {"PRECISION": "ieee", "num_stages": 1, "num_warps": 8}
    return {"PRECISION": "ieee", "num_warps": num_warps}


def gradient_parts(v_BNTV: Tensor, g_BNT: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for gradients of values, log-decays and weights, a part for each block of keys."""
    return value_parts(v_BNTV, parts), decay_parts(g_BNT, parts), decay_parts(g_BNT, parts)


def decay_parts(g_BNT: Tensor, parts: int) -> Tensor:
    """Room for gradients (parts, B, N, T) of a number a token, with the heads beside each other."""
    batch, heads, time = g_BNT.shape
    return g_BNT.new_empty(parts, batch, time, heads).transpose(2, 3)
