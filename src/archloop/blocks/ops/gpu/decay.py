"""Scores of a chunk times their decays on a GPU, in one pass instead of five.

``out_ij = scores_ij exp(b_i - b_j)`` where token i is at least GAP tokens after token j, else 0;
rows may be several to a token. The exponential is float32 and taken of numbers that are at most 0.

Imported only where Triton is installed. Shape suffixes: X leading dimensions, C tokens, R ranks,
M = C R rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


@triton.jit
def _ratio(b_ptr, C: tl.constexpr, R: tl.constexpr, M: tl.constexpr, GAP: tl.constexpr):
    """The program's decay ratios (M, M), 0 where the key is too late."""
    token = tl.arange(0, M) // R
    b = tl.load(b_ptr + tl.program_id(0).to(tl.int64) * C + token)
    allowed = token[:, None] >= token[None, :] + GAP
    difference = tl.where(allowed, b[:, None] - b[None, :], 0.0)
    return tl.where(allowed, tl.exp(difference), 0.0)


@triton.jit
def _forward_kernel(
    scores_ptr, b_ptr, out_ptr,
    C: tl.constexpr, R: tl.constexpr, M: tl.constexpr, GAP: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * M * M
    at += tl.arange(0, M)[:, None] * M + tl.arange(0, M)[None, :]
    out = tl.load(scores_ptr + at).to(tl.float32) * _ratio(b_ptr, C, R, M, GAP)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _backward_kernel(
    scores_ptr, b_ptr, grad_ptr, dscores_ptr, db_ptr,
    C: tl.constexpr, R: tl.constexpr, M: tl.constexpr, GAP: tl.constexpr,
):  # fmt: skip
    """Gradients of the scores, and of b for each row."""
    i = tl.arange(0, M)
    at = tl.program_id(0).to(tl.int64) * M * M + i[:, None] * M + i[None, :]
    dscores = tl.load(grad_ptr + at).to(tl.float32) * _ratio(b_ptr, C, R, M, GAP)
    tl.store(dscores_ptr + at, dscores.to(dscores_ptr.dtype.element_ty))
    weighted = dscores * tl.load(scores_ptr + at).to(tl.float32)
    db = tl.sum(weighted, 1) - tl.sum(weighted, 0)
    tl.store(db_ptr + tl.program_id(0).to(tl.int64) * M + i, db)


class DecayedScores(torch.autograd.Function):
    """`ranked_ssd.decayed_scores` on a GPU; M is a power of two."""

    @staticmethod
    def forward(ctx: Any, scores_XMM: Tensor, b_XC: Tensor, diagonal: int) -> Tensor:
        """Scores times decays."""
        scores_XMM, b_XC = scores_XMM.contiguous(), b_XC.contiguous()
        out_XMM = torch.empty_like(scores_XMM)
        rows, tokens = scores_XMM.shape[-1], b_XC.shape[-1]
        ctx.sizes = {"C": tokens, "R": rows // tokens, "M": rows, "GAP": -diagonal}
        _forward_kernel[(b_XC.numel() // tokens,)](scores_XMM, b_XC, out_XMM, **ctx.sizes)
        ctx.save_for_backward(scores_XMM, b_XC)
        return out_XMM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of scores and cumulative log-decays."""
        scores_XMM, b_XC = ctx.saved_tensors
        rows, tokens = scores_XMM.shape[-1], b_XC.shape[-1]
        grad_XMM, dscores_XMM = grads[0].contiguous(), torch.empty_like(scores_XMM)
        db_XM = torch.empty(*b_XC.shape[:-1], rows, dtype=b_XC.dtype, device=b_XC.device)
        _backward_kernel[(b_XC.numel() // tokens,)](
            scores_XMM, b_XC, grad_XMM, dscores_XMM, db_XM, **ctx.sizes
        )
        return dscores_XMM, db_XM.unflatten(-1, (tokens, -1)).sum(-1), None
