"""`ops.norm_rotate` on a GPU: split into heads, RMSNorm and RoPE in one pass, forward and back.

Queries come out in the order of memory (token, head), in which attention kernels read them. All
arithmetic is float32. Imported only where Triton is installed. Shape suffixes: as in
`ops.norm_rotate`; h half a head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from archloop.blocks.ops.gpu.lengths import any_length

BLOCK_T = 16
"""Tokens of a program, which goes through their heads: angles are the same for all."""


@triton.jit
def _turn(positions_ptr, freq_ptr, token, num_tokens, num_steps, p_b, p_t, k, HALF: tl.constexpr):
    """Cosine and sine of each pair's angle, (tokens, H)."""
    inside = token < num_tokens
    at = (token // num_steps) * p_b + (token % num_steps) * p_t
    position = tl.load(positions_ptr + at, mask=inside, other=0).to(tl.float32)
    freq = tl.load(freq_ptr + k % HALF, mask=k < 2 * HALF, other=0.0)
    angle = position[:, None] * freq[None, :]
    return tl.cos(angle), tl.sin(angle)


@any_length("x_t", "p_b")
def _forward_kernel(
    x_ptr, w_ptr, positions_ptr, freq_ptr, out_ptr, num_tokens, num_steps, x_t, p_b, p_t, eps,
    N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    k, half = tl.arange(0, HP), H // 2
    other = tl.where(k < half, k + half, k - half)
    mask = (token < num_tokens)[:, None] & (k < H)[None, :]
    if NORM:
        w = tl.load(w_ptr + k, mask=k < H, other=0.0).to(tl.float32)[None, :]
        partner_w = tl.load(w_ptr + other, mask=k < H, other=0.0).to(tl.float32)[None, :]
    if ROTATE:
        cos, sin = _turn(positions_ptr, freq_ptr, token, num_tokens, num_steps, p_b, p_t, k, half)
        sin = tl.where(k < half, -1.0, 1.0)[None, :] * sin
    for head in range(N):
        at = (token * x_t)[:, None] + head * H
        x = tl.load(x_ptr + at + k[None, :], mask=mask, other=0.0).to(tl.float32)
        partner = tl.load(x_ptr + at + other[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.rsqrt(tl.sum(x * x, 1) / H + eps)[:, None]
            x *= scale * w
            partner *= scale * partner_w
        if ROTATE:
            x = x * cos + partner * sin
        out_at = (token * N + head)[:, None] * H + k[None, :]
        tl.store(out_ptr + out_at, x.to(out_ptr.dtype.element_ty), mask=mask)


@any_length("x_t", "p_b", "g_b")
def _backward_kernel(
    x_ptr, w_ptr, positions_ptr, freq_ptr, grad_ptr, dx_ptr, dw_ptr, num_tokens, num_steps, x_t,
    p_b, p_t, g_b, g_n, g_t, eps,
    N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Gradient of x (heads side by side); that of the weight is a partial sum, one a program."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    k, half = tl.arange(0, HP), H // 2
    other = tl.where(k < half, k + half, k - half)
    mask = (token < num_tokens)[:, None] & (k < H)[None, :]
    if NORM:
        w = tl.load(w_ptr + k, mask=k < H, other=0.0).to(tl.float32)[None, :]
    if ROTATE:
        cos, sin = _turn(positions_ptr, freq_ptr, token, num_tokens, num_steps, p_b, p_t, k, half)
        # The inverse rotation: the sine with the opposite sign.
        sin = tl.where(k < half, 1.0, -1.0)[None, :] * sin
    dw = tl.zeros([BLOCK_T, HP], dtype=tl.float32)
    g_at = ((token // num_steps) * g_b + (token % num_steps) * g_t)[:, None]
    for head in range(N):
        g = tl.load(grad_ptr + g_at + k[None, :], mask=mask, other=0.0).to(tl.float32)
        if ROTATE:
            partner = tl.load(grad_ptr + g_at + other[None, :], mask=mask, other=0.0)
            g = g * cos + partner.to(tl.float32) * sin
        if NORM:
            at = (token * x_t)[:, None] + head * H + k[None, :]
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
            inverse = tl.rsqrt(tl.sum(x * x, 1) / H + eps)[:, None]
            unit = x * inverse
            dw += g * unit
            g *= w
            g = inverse * (g - unit * (tl.sum(g * unit, 1) / H)[:, None])
        dx_at = (token * N + head)[:, None] * H + k[None, :]
        tl.store(dx_ptr + dx_at, g.to(dx_ptr.dtype.element_ty), mask=mask)
        # Not head * g_n: heads may lie further apart than 32 bits count.
        grad_ptr += g_n
    if NORM:
        tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * H + k, tl.sum(dw, 0), mask=k < H)


class NormRotate(torch.autograd.Function):
    """`ops.norm_rotate.norm_rotate` on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, x_BTd: Tensor, heads: int, weight_H: Tensor | None, eps: float,
        positions_BT: Tensor, freq_h: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Heads (B, N, T, H), a view of (B, T, N, H)."""
        batch, time, width = x_BTd.shape
        even = batch == 1 or x_BTd.stride(0) == time * x_BTd.stride(1)
        if not even or x_BTd.stride(2) != 1:
            x_BTd = x_BTd.contiguous()
        head = width // heads
        out_BTNH = x_BTd.new_empty(batch, time, heads, head)
        ctx.options = {
            "N": heads, "H": head, "HP": triton.next_power_of_2(head),
            "NORM": weight_H is not None, "ROTATE": freq_h is not None, "BLOCK_T": BLOCK_T,
        }  # fmt: skip
        weight = x_BTd if weight_H is None else weight_H
        freq = weight if freq_h is None else freq_h
        tokens = batch * time
        _forward_kernel[(triton.cdiv(tokens, BLOCK_T),)](
            x_BTd, weight, positions_BT, freq, out_BTNH, tokens, time, x_BTd.stride(1),
            *positions_BT.stride(), eps, **ctx.options,
        )  # fmt: skip
        ctx.save_for_backward(x_BTd, weight, positions_BT, freq)
        ctx.eps = eps
        return out_BTNH.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the norm's weight."""
        x_BTd, weight, positions_BT, freq = ctx.saved_tensors
        (batch, time, _), options = x_BTd.shape, ctx.options
        grad_BNTH = grads[0] if grads[0].stride(3) == 1 else grads[0].contiguous()
        dx_BTd = torch.empty(x_BTd.shape, dtype=x_BTd.dtype, device=x_BTd.device)
        tokens = batch * time
        programs = triton.cdiv(tokens, BLOCK_T)
        parts = torch.empty(
            programs if options["NORM"] else 0,
            options["H"],
            dtype=torch.float32,
            device=x_BTd.device,
        )
        stride_b, stride_n, stride_t, _ = grad_BNTH.stride()
        _backward_kernel[(programs,)](
            x_BTd, weight, positions_BT, freq, grad_BNTH, dx_BTd, parts,
            tokens, time, x_BTd.stride(1), *positions_BT.stride(), stride_b, stride_n, stride_t,
            ctx.eps, **options,
        )  # fmt: skip
        dweight = parts.sum(0).to(weight.dtype) if options["NORM"] else None
        return dx_BTd, None, dweight, None, None, None
