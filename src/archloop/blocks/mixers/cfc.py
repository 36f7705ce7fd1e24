"""CfC: the closed-form continuous-time cell, a Liquid Time-Constant network solved in closed form.

arXiv 2106.13898, equation 10 and the authors' code. ``z = lecun_tanh(W [x_t, h_{t-1}])``, then
heads f, g and a gate: ``h_t = tanh(f) (1 - s) + tanh(g) s``, ``s = sigmoid(t_a elapsed + t_b)``.
Tokens are one unit of time apart, so t_a + t_b is one layer here. ``mode="no_gate"`` is
``tanh(f) + s tanh(g)``; ``"pure"`` is the solution itself, ``A - A exp(-(|w| + |f|)) f``. All are
bounded by construction or by their parameters. The cell is not linear: training is sequential.

Shape suffixes: B batch, T time, D model width (and units), U backbone width.
"""

from typing import Annotated, Literal, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.linear import Linear
from archloop.blocks.ops.cell_scan import Head, cell_scan, cell_step
from archloop.blocks.ops.precision import exact, precise


class Sizes(TypedDict):
    """What follows from the model width."""

    d_backbone: int


class CfC(SequenceMixer):
    """Nonlinear cell of d units; d float32 values of state."""

    class Config(MixerConfig):
        """`backbone`: width of the cell's hidden layer over d_model."""

        through_sizes = frozenset({"backbone"})
        backbone: Annotated[float, Gene((0.25, 0.5, 1.0))] = Field(0.5, gt=0, le=8)
        mode: Literal["default", "no_gate", "pure"] = "default"

        def sizes(self, d_model: int) -> Sizes:
            return {"d_backbone": max(1, round(self.backbone * d_model))}

        @property
        def num_heads(self) -> int:
            """Outputs of the backbone per unit."""
            return 1 if self.mode == "pure" else 3

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            width, outputs = self.sizes(d_model)["d_backbone"], self.num_heads * d_model
            terms = {
                "input": (d_model + 1) * width,
                "recurrent": d_model * width,
                "heads": (width + 1) * outputs,
                "out_proj": d_model**2,
            }
            return terms | ({"rate": d_model, "amplitude": d_model} if self.mode == "pure" else {})

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            return {"h": Held("recurrent", (d_model,))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            width = self.sizes(d_model)["d_backbone"]
            return {
                "input": 2 * num_tokens * d_model * width,
                "recurrent": 2 * num_tokens * d_model * width,
                "heads": 2 * num_tokens * width * self.num_heads * d_model,
                "blend": 4 * num_tokens * d_model,
                "out_proj": 2 * num_tokens * d_model**2,
            }

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        width = config.sizes(d_model)["d_backbone"]
        heads: dict[str, Head] = {"default": blend, "no_gate": add, "pure": solution}
        self.head = heads[config.mode]
        self.input = Linear(d_model, width, bias=True)
        self.recurrent = Linear(d_model, width)
        self.heads = Linear(width, config.num_heads * d_model, bias=True)
        self.out_proj = Linear(d_model, d_model)
        bound = (6 / (2 * d_model + width)) ** 0.5
        nn.init.uniform_(self.input.weight, -bound, bound)
        nn.init.uniform_(self.recurrent.weight, -bound, bound)
        for head in self.heads.weight.chunk(config.num_heads):
            nn.init.xavier_uniform_(head)
        if config.mode == "pure":
            # As the authors' code draws it. At 0 the gradient of |w| is 0, so that a rate that
            # begins there never learns.
            bound = (6 / (1 + d_model)) ** 0.5
            self.rate = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound))
            self.amplitude = nn.Parameter(torch.ones(d_model))

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        p_BTU = precise(self.input(x_BTD))
        start_BD = p_BTU.new_zeros(x_BTD.shape[0], x_BTD.shape[2])
        if state is not None:
            start_BD = state["h"].to(p_BTU.dtype, copy=True)
        with exact(p_BTU):
            h_BTD = cell_scan(p_BTU, *self._weights(), start_BD, self.head, *self._head_params())
        if state is not None:
            state["h"].copy_(_last(h_BTD, start_BD, span.lengths_B))
        return self.out_proj(h_BTD.to(x_BTD.dtype))

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        p_BU = precise(self.input(x_BD))
        h_BD = state["h"].to(p_BU.dtype)
        with exact(p_BU):
            h_BD = cell_step(p_BU, *self._weights(), h_BD, self.head, *self._head_params())
        state["h"].copy_(h_BD)
        return self.out_proj(h_BD.to(x_BD.dtype))

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return precise(self.recurrent.weight), precise(self.heads.weight), precise(self.heads.bias)

    def _head_params(self) -> tuple[Tensor, ...]:
        if self.head is not solution:
            return ()
        return precise(self.rate), precise(self.amplitude)


def blend(o: Tensor) -> Tensor:
    """``tanh(f) (1 - s) + tanh(g) s`` of f, g and the gate side by side, (..., 3 H) to (..., H)."""
    f, g, gate = o.chunk(3, -1)
    return torch.lerp(f.tanh(), g.tanh(), gate.sigmoid())


def add(o: Tensor) -> Tensor:
    """``tanh(f) + s tanh(g)`` of f, g and the gate side by side, (..., 3 H) to (..., H)."""
    f, g, gate = o.chunk(3, -1)
    return f.tanh() + gate.sigmoid() * g.tanh()


def solution(f: Tensor, rate: Tensor, amplitude: Tensor) -> Tensor:
    """``A - A exp(-(|w| + |f|)) f`` for f (..., H), with the rates w and the amplitudes A, (H,)."""
    return amplitude - amplitude * torch.exp(-(rate.abs() + f.abs())) * f


def _last(h_BTD: Tensor, start_BD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """The state after each row's last real token; padding stands after them."""
    if lengths_B is None:
        return h_BTD[:, -1]
    states_BSD = torch.cat([start_BD[:, None], h_BTD], 1)
    return states_BSD[torch.arange(h_BTD.shape[0], device=h_BTD.device), lengths_B]
