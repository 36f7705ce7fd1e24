"""A nonlinear cell's pass as a loop in the program, where PyTorch would write 64 steps one by one.

Nothing but the cell itself can be computed for all tokens at once, and a step written 64 times has
64 copies of everything that the engine prepares for it. ``scan`` is one step and a jump back.

Shape suffixes: B batch (1), T tokens, U hidden width, H units.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from archloop.blocks.base import SequenceMixer, Span, State
from archloop.blocks.mixers.cfc import CfC
from archloop.blocks.ops.cell_scan import cell_step


def loop(mixer: SequenceMixer) -> None:
    """Let a mixer with a cell loop over time in the graph; others are left as they are."""
    if type(mixer) is CfC:
        mixer.__class__ = LoopedCfC


class LoopedCfC(CfC):
    """CfC whose `mix` is a loop in the graph; with a state, of one row."""

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        assert state is not None, "a graph of inference has a state"
        weights, more = self._weights(), self._head_params()

        def step(h_BH: Tensor, p_BU: Tensor) -> tuple[Tensor, Tensor]:
            h_BH = cell_step(p_BU, *weights, h_BH, self.head, *more)
            return h_BH, h_BH.clone()

        start_BH = state["h"].clone()
        _, h_TBH = scan(step, start_BH, self.input(x_BTD).transpose(0, 1))
        states_SBH = torch.cat([start_BH[None], h_TBH])
        last = span.lengths_B if span.lengths_B is not None else torch.tensor([x_BTD.shape[1]])
        state["h"].copy_(states_SBH.index_select(0, last)[0])
        return self.out_proj(h_TBH.transpose(0, 1))
