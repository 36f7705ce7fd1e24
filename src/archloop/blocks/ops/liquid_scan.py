"""The liquid state space: a diagonal recurrence whose decays move with its own input.

``h_t = (a + b v_t) h_{t-1} + b v_t``, ``y_t = 2 Re(c h_t)`` per channel, complex modes h
(arXiv 2209.12951, eq. 8). The authors train a truncated kernel that is neither causal nor this
recurrence; here it is exact. The forms are as in `selective_scan`: chunk by chunk, a chunk's states
computed again in backward.

Shape suffixes: B batch, T time, D channels, M modes per channel.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archloop.blocks.ops import triton_kernels
from archloop.blocks.ops.autograd import apply
from archloop.blocks.ops.chunks import tokens_at_once
from archloop.blocks.ops.scan import Pair, scan_pair

CHUNK = 64


def liquid_step(v_BD: Tensor, a: Pair, b: Pair, h: Pair) -> Pair:
    """The next state (B, D, M)."""
    push_r, push_i = v_BD[..., None] * b[0], v_BD[..., None] * b[1]
    move_r, move_i = a[0] + push_r, a[1] + push_i
    return (
        move_r * h[0] - move_i * h[1] + push_r,
        move_r * h[1] + move_i * h[0] + push_i,
    )


def read_out(c: Pair, h: Pair) -> Tensor:
    """``2 Re(c h)``, summed over modes."""
    return 2 * (c[0] * h[0] - c[1] * h[1]).sum(-1)


def naive_liquid_scan(v_BTD: Tensor, a: Pair, b: Pair, c: Pair, start: Pair) -> tuple[Tensor, Pair]:
    """One step at a time. Arguments and result as `liquid_scan`, without padding."""
    h, outputs = start, []
    for v_BD in v_BTD.unbind(1):
        h = liquid_step(v_BD, a, b, h)
        outputs.append(read_out(c, h))
    return torch.stack(outputs, 1), h


def liquid_scan(
    v_BTD: Tensor, a: Pair, b: Pair, c: Pair, start: Pair, valid_BT: Tensor | None = None
) -> tuple[Tensor, Pair]:
    """Outputs (B, T, D) and last state (B, D, M).

    Args:
        v_BTD: inputs, in at least float32; bounded so that ``|a + b v| < 1``.
        a: decays (D, M) at input 0.
        b: input weights (D, M), of state and of decay.
        c: output weights (D, M).
        start: the state before the first token, (B, D, M).
        valid_BT: True at tokens that advance the state; None when all do.
    """
    if triton_kernels.usable(v_BTD):
        from archloop.blocks.ops.gpu.liquid_scan import LiquidScan

        keeps_BT = v_BTD.new_zeros(v_BTD.shape[:2])
        if valid_BT is not None:
            keeps_BT = 1.0 - valid_BT.to(v_BTD.dtype)
        y_BTD, re, im = apply(LiquidScan, v_BTD, *a, *b, *c, *start, keeps_BT)
        return y_BTD, (re, im)
    h, outputs = start, []
    chunk = tokens_at_once(2 * start[0].nbytes, CHUNK)
    valid = [None] * v_BTD.shape[1] if valid_BT is None else valid_BT.split(chunk, 1)
    for piece, real in zip(v_BTD.split(chunk, 1), valid, strict=False):
        if torch.is_grad_enabled():
            y, *h_parts = checkpoint(
                _chunk, piece, a, b, c, h, real, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y, *h_parts = _chunk(piece, a, b, c, h, real)
        h = (h_parts[0], h_parts[1])
        outputs.append(y)
    return torch.cat(outputs, 1), h


def _chunk(
    v_BTD: Tensor, a: Pair, b: Pair, c: Pair, start: Pair, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    push = (v_BTD[..., None] * b[0], v_BTD[..., None] * b[1])
    move = (a[0] + push[0], a[1] + push[1])
    if valid_BT is not None:
        real = valid_BT[..., None, None]
        move = (torch.where(real, move[0], 1.0), torch.where(real, move[1], 0.0))
        push = (torch.where(real, push[0], 0.0), torch.where(real, push[1], 0.0))
    flat = [(p[0].flatten(2), p[1].flatten(2)) for p in (move, push)]
    first = (start[0].flatten(1), start[1].flatten(1))
    re, im = (h.view_as(push[0]) for h in scan_pair(flat[0], flat[1], first))
    return read_out(c, (re, im)), re[:, -1], im[:, -1]
