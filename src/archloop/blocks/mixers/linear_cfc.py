"""Linearised closed-form continuous-time cell: our own variant of CfC that a scan can run.

CfC (arXiv 2106.13898, eq. 10) blends two heads, ``h = f (1-s) + g s``, each a function of input and
old state, which makes it sequential. Here the heads see the input alone and g is the old state:
``h_t = s_t h_{t-1} + (1 - s_t) f_t`` with ``z = lecun_tanh(W x)``, ``f = tanh(W_f z)``,
``s = sigmoid(W_s z + b)``. No published model; |h| <= 1 by construction.

Shape suffixes: B batch, T time, D model width, U backbone width.
"""

from typing import Annotated, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops.cell_scan import lecun_tanh
from archloop.blocks.ops.precision import KeepsFloat32, precise
from archloop.blocks.ops.scan import scan


class Sizes(TypedDict):
    """What follows from the model width."""

    d_backbone: int


class LinearCfC(KeepsFloat32, SequenceMixer):
    """Gated leaky integrator with a shared backbone; d float32 values of state."""

    float32_params = frozenset({"gate_bias"})

    class Config(MixerConfig):
        """`backbone`: width of the hidden layer over d_model."""

        through_sizes = frozenset({"backbone"})
        backbone: Annotated[float, Gene((0.5, 1.0, 2.0))] = Field(1.0, gt=0, le=8)

        def sizes(self, d_model: int) -> Sizes:
            return {"d_backbone": max(1, round(self.backbone * d_model))}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            width = self.sizes(d_model)["d_backbone"]
            return {
                "backbone": d_model * width,
                "heads": width * 2 * d_model,
                "gate_bias": d_model,
                "out_proj": d_model**2,
            }

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            return {"h": Held("recurrent", (d_model,))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            params = self.param_terms(d_model)
            terms = matrix_flops(params, ("backbone", "heads", "out_proj"), num_tokens)
            return terms | {"blend": 2 * num_tokens * d_model}

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        width = config.sizes(d_model)["d_backbone"]
        self.backbone = Linear(d_model, width)
        self.heads = Linear(width, 2 * d_model)
        # Time constants from 10 to 1,000 tokens, as state space models start.
        leak_D = torch.empty(d_model).uniform_(-6.9, -2.3).exp()
        self.gate_bias = nn.Parameter(torch.logit(1 - leak_D))
        self.out_proj = Linear(d_model, d_model)

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        a_BTD, b_BTD = self._recurrence(x_BTD)
        valid_BT = span.valid_BT
        if valid_BT is not None:
            a_BTD = torch.where(valid_BT[..., None], a_BTD, 1.0)
            b_BTD = torch.where(valid_BT[..., None], b_BTD, 0.0)
        h_BTD = scan(a_BTD, b_BTD, None if state is None else state["h"].to(b_BTD.dtype))
        if state is not None:
            state["h"].copy_(h_BTD[:, -1])
        return self.out_proj(h_BTD.to(x_BTD.dtype))

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        a_BD, b_BD = self._recurrence(x_BD)
        h_BD = a_BD * state["h"] + b_BD
        state["h"].copy_(h_BD)
        return self.out_proj(h_BD.to(x_BD.dtype))

    def _recurrence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Decay s and input (1-s) f of each token."""
        f, gate = self.heads(lecun_tanh(self.backbone(x))).chunk(2, -1)
        gate = precise(gate) + precise(self.gate_bias)
        return gate.sigmoid(), (-gate).sigmoid() * precise(f).tanh()
