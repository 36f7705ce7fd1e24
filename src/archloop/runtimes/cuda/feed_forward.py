"""A gated feed-forward (`blocks.fast.GatedFeedForward`) through kernels.

Shape suffixes: as in `runtimes.cuda.half`; F hidden width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.fast import GatedFeedForward
from archloop.runtimes.cuda.half import Call, Half
from archloop.runtimes.cuda.kernels import gemv, rows
from archloop.runtimes.cuda.output import Output
from archloop.runtimes.cuda.row import Norm, Row

TOKENS_AT_ONCE = 32768
"""Tokens whose hidden activations are held at once."""


class FeedForwardHalf(Half):
    """Norm, gated feed-forward, residual."""

    def __init__(
        self, form: GatedFeedForward, norm: Norm, post_norm: Norm | None, overlap: bool
    ) -> None:
        self.form, self.norm, self.overlap = form, norm, overlap
        self.output = Output(form.down, post_norm, overlap)

    def rows(self, x_XD: Tensor, h_XD: Tensor | None, call: Call, after: Norm) -> Tensor | None:
        del call
        assert h_XD is not None
        normed = []
        parts = zip(h_XD.split(TOKENS_AT_ONCE), x_XD.split(TOKENS_AT_ONCE), strict=True)
        for h_XD, x_XD in parts:
            hidden_XF = rows.silu_mul(F.linear(h_XD, self.form.gate_up))
            normed.append(self.output.rows(x_XD, hidden_XF, after))
        found = [part for part in normed if part is not None]
        return (found[0] if len(found) == 1 else torch.cat(found)) if found else None

    def one(self, row: Row, call: Call) -> None:
        del call
        hidden_F = row.x_D.new_empty(self.form.down.shape[1])
        gemv.gate_up(row.read(), self.norm, self.form.gate_up, hidden_F, pdl=self.overlap)
        self.output.one(row, hidden_F)
