"""Convolution, SiLU and unit length of queries and keys on a GPU: one pass forward, two back.

A program handles one head for a block of time, so a vector's length needs no second pass. Backward
computes the convolution again, writes the gradient of its outputs, and turns that into those of
inputs and weights; a program adds up the weights' gradient over several blocks. All arithmetic is
float32.

Imported only where Triton is installed. Shape suffixes: B batch, T time, D channels of all heads, H
head width, K kernel, L = K-1 past inputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.conv import past_gradient
from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T = 32
BLOCKS = 8
"""Blocks of time to a program of the weights' gradient."""


@triton.jit
def _convolved(
    x_ptr, w_ptr, past_ptr, row, t, d, mask, num_channels, x_b, x_t,
    K: tl.constexpr, PAST: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    z = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    for back in tl.static_range(K):
        w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < num_channels, other=0.0)
        at = t - back
        x = tl.load(
            x_ptr + row * x_b + at[:, None].to(tl.int64) * x_t + d[None, :],
            mask=mask & (at >= 0)[:, None],
            other=0.0,
        ).to(tl.float32)
        if PAST:
            held = (row * (K - 1) + (K - 1 + at)[:, None]) * num_channels + d[None, :]
            x += tl.load(past_ptr + held, mask=mask & (at < 0)[:, None], other=0.0).to(tl.float32)
        z += w.to(tl.float32)[None, :] * x
    return z


@any_length()
def _forward_kernel(
    x_ptr, w_ptr, past_ptr, q_ptr, k_ptr, v_ptr, num_steps, num_channels, num_blocks, key_heads,
    x_b, x_t, scale, eps, H: tl.constexpr, BLOCK_H: tl.constexpr, K: tl.constexpr,
    PAST: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    head = tl.program_id(1)
    t, j = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    mask = (t < num_steps)[:, None] & (j < H)[None, :]
    z = _convolved(
        x_ptr, w_ptr, past_ptr, row, t, head * H + j, mask, num_channels, x_b, x_t,
        K, PAST, BLOCK_T, BLOCK_H,
    )  # fmt: skip
    y = z * tl.sigmoid(z)
    at = row * num_steps + t[:, None]
    if head < 2 * key_heads:
        y *= tl.rsqrt(tl.sum(tl.where(mask, y * y, 0.0), 1) + eps)[:, None]
        out = at * key_heads * H + j[None, :]
        if head < key_heads:
            tl.store(q_ptr + out + head * H, (y * scale).to(q_ptr.dtype.element_ty), mask=mask)
        else:
            out += (head - key_heads) * H
            tl.store(k_ptr + out, y.to(k_ptr.dtype.element_ty), mask=mask)
    else:
        out = at * (num_channels - 2 * key_heads * H) + (head - 2 * key_heads) * H + j[None, :]
        tl.store(v_ptr + out, y.to(v_ptr.dtype.element_ty), mask=mask)


@any_length()
def _output_gradient_kernel(
    x_ptr, w_ptr, past_ptr, dq_ptr, dk_ptr, dv_ptr, dz_ptr, num_steps, num_channels, num_blocks,
    key_heads, x_b, x_t, scale, eps, H: tl.constexpr, BLOCK_H: tl.constexpr, K: tl.constexpr,
    PAST: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution's outputs."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    head = tl.program_id(1)
    t, j = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    mask = (t < num_steps)[:, None] & (j < H)[None, :]
    z = _convolved(
        x_ptr, w_ptr, past_ptr, row, t, head * H + j, mask, num_channels, x_b, x_t,
        K, PAST, BLOCK_T, BLOCK_H,
    )  # fmt: skip
    s = tl.sigmoid(z)
    y = tl.where(mask, z * s, 0.0)
    at = row * num_steps + t[:, None]
    if head < 2 * key_heads:
        here = at * key_heads * H + j[None, :]
        if head < key_heads:
            dy = tl.load(dq_ptr + here + head * H, mask=mask, other=0.0).to(tl.float32) * scale
        else:
            here += (head - key_heads) * H
            dy = tl.load(dk_ptr + here, mask=mask, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(y * y, 1) + eps)[:, None]
        along = tl.sum(dy * y, 1)[:, None]
        dy = inverse * (dy - y * inverse * inverse * along)
    else:
        here = at * (num_channels - 2 * key_heads * H) + (head - 2 * key_heads) * H + j[None, :]
        dy = tl.load(dv_ptr + here, mask=mask, other=0.0).to(tl.float32)
    dz = dy * s * (1 + z * (1 - s))
    at = at * num_channels + head * H + j[None, :]
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)


@any_length()
def _input_gradient_kernel(
    x_ptr, w_ptr, dz_ptr, dx_ptr, dw_ptr, num_steps, num_channels, num_blocks, x_b, x_t,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradients, none of a past; that of the weights is a partial sum, one a program."""
    row, block = tl.program_id(0).to(tl.int64) // num_blocks, tl.program_id(0) % num_blocks
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = (d < num_channels)[None, :]
    part = tl.program_id(0).to(tl.int64) * K * num_channels
    for back in tl.static_range(K):
        dw = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for at in range(BLOCKS):
            t = (block * BLOCKS + at) * BLOCK_T + tl.arange(0, BLOCK_T)
            mask = (t < num_steps)[:, None] & d_in
            x = tl.load(
                x_ptr + row * x_b + t[:, None].to(tl.int64) * x_t + d[None, :], mask=mask, other=0.0
            )
            here = (row * num_steps + t[:, None]) * num_channels + d[None, :]
            later = mask & (t + back < num_steps)[:, None]
            dz = tl.load(dz_ptr + here + back * num_channels, mask=later, other=0.0)
            dw += x.to(tl.float32) * dz.to(tl.float32)
        out = dw_ptr + part + (K - 1 - back) * num_channels + d
        tl.store(out, tl.sum(dw, 0), mask=d < num_channels)
    for at in range(BLOCKS):
        t = (block * BLOCKS + at) * BLOCK_T + tl.arange(0, BLOCK_T)
        mask = (t < num_steps)[:, None] & d_in
        here = (row * num_steps + t[:, None]) * num_channels + d[None, :]
        dx = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
        for back in tl.static_range(K):
            w = tl.load(w_ptr + d * K + (K - 1 - back), mask=d < num_channels, other=0.0)
            later = mask & (t + back < num_steps)[:, None]
            dz = tl.load(dz_ptr + here + back * num_channels, mask=later, other=0.0)
            dx += w.to(tl.float32)[None, :] * dz.to(tl.float32)
        tl.store(dx_ptr + here, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class UnitConv(torch.autograd.Function):
    """`unit_conv.unit_conv` on a GPU; no gradient flows to the past."""

    @staticmethod
    def forward(
        ctx: Any, x_BTD: Tensor, weight_DK: Tensor, past_BLD: Tensor | None, key_heads: int,
        head_dim: int, eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Queries, keys and values."""
        x_BTD = x_BTD if x_BTD.stride(2) == 1 else x_BTD.contiguous()
        weight_DK = weight_DK.contiguous()
        batch, time, channels = x_BTD.shape
        keys = key_heads * head_dim
        q, k, v = (x_BTD.new_empty(batch, time, n) for n in (keys, keys, channels - 2 * keys))
        past = x_BTD if past_BLD is None else past_BLD.contiguous()
        _forward_kernel[_grid(x_BTD, head_dim)](
            x_BTD, weight_DK, past, q, k, v, *_sizes(x_BTD), key_heads, *x_BTD.stride()[:2],
            head_dim**-0.5, eps, PAST=past_BLD is not None, **_constants(weight_DK, head_dim),
        )  # fmt: skip
        ctx.past = past_BLD is not None
        if ctx.past and any(ctx.needs_input_grad):
            past = past.clone()  # the caller's is written in place before gradients are asked for
        ctx.save_for_backward(x_BTD, weight_DK, past)
        ctx.sizes = key_heads, head_dim, eps
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs and weights."""
        x_BTD, weight_DK, past = ctx.saved_tensors
        key_heads, head_dim, eps = ctx.sizes
        batch, time, channels = x_BTD.shape
        dz_BTD = torch.empty(x_BTD.shape, dtype=x_BTD.dtype, device=x_BTD.device)
        _output_gradient_kernel[_grid(x_BTD, head_dim)](
            x_BTD, weight_DK, past, *(grad.contiguous() for grad in grads), dz_BTD,
            *_sizes(x_BTD), key_heads, *x_BTD.stride()[:2], head_dim**-0.5, eps,
            PAST=ctx.past, **_constants(weight_DK, head_dim),
        )  # fmt: skip
        blocks, dx_BTD = triton.cdiv(time, BLOCK_T * BLOCKS), torch.empty_like(dz_BTD)
        parts = torch.empty(
            batch * blocks, weight_DK.shape[1], channels, dtype=torch.float32, device=x_BTD.device
        )
        _input_gradient_kernel[batch * blocks, triton.cdiv(channels, 64)](
            x_BTD, weight_DK, dz_BTD, dx_BTD, parts, time, channels, blocks, *x_BTD.stride()[:2],
            K=weight_DK.shape[1], BLOCK_T=BLOCK_T, BLOCK_D=64, BLOCKS=BLOCKS,
        )  # fmt: skip
        dweight_DK = parts.sum(0).T
        if ctx.past:
            dweight_DK = dweight_DK + past_gradient(past, dz_BTD)
        return dx_BTD, dweight_DK.to(weight_DK.dtype), None, None, None, None


def _grid(x_BTD: Tensor, head_dim: int) -> tuple[int, int]:
    batch, time, channels = x_BTD.shape
    return batch * triton.cdiv(time, BLOCK_T), channels // head_dim


def _sizes(x_BTD: Tensor) -> tuple[int, int, int]:
    return x_BTD.shape[1], x_BTD.shape[2], triton.cdiv(x_BTD.shape[1], BLOCK_T)


def _constants(weight_DK: Tensor, head_dim: int) -> dict[str, int]:
    block = 1 << (head_dim - 1).bit_length()
    return {"H": head_dim, "BLOCK_H": block, "K": weight_DK.shape[1], "BLOCK_T": BLOCK_T}
