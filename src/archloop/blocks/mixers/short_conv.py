"""Gated short convolution, the cheap mixer of LFM2 (arXiv 2511.23404, section 2.2).

``(b, c, u) = W_in x``; ``y = W_out(c * conv_K(b * u))`` with a depthwise causal convolution and no
activation. The state holds the last K-1 gated inputs ``b * u``.

Shape suffixes: B batch, T time, D model width, K kernel, L = K-1;
E = 3D.
"""

from typing import Annotated, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.fast import GatedConv
from archloop.blocks.linear import Linear
from archloop.blocks.ops.conv import advance_past, causal_conv, causal_conv_step
from archloop.blocks.ops.gated_conv import gated_conv


class Sizes(TypedDict):
    """What follows from the model width."""

    kernel: int


class ShortConv(SequenceMixer):
    """Gated short convolution; 4 d^2 + K d parameters, (K-1) d values of state."""

    packs = True

    class Config(MixerConfig):
        """LFM2 uses kernel 3, LFM3 kernel 7."""

        kernel: Annotated[int, Gene((3, 5, 7))] = Field(3, ge=1, le=64)
        bias: bool = False

        def sizes(self, d_model: int) -> Sizes:
            return {"kernel": self.kernel}

        def reach(self, d_model: int) -> int:
            return self.kernel - 1

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            bias = int(self.bias)
            terms = {
                "in_proj": (d_model + bias) * 3 * d_model,
                "conv": d_model * self.kernel,
                "out_proj": (d_model + bias) * d_model,
            }
            return terms | ({"conv_bias": d_model} if self.bias else {})

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            return {"conv": Held("recent", (self.kernel - 1, d_model))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            return {
                "in_proj": 2 * num_tokens * 3 * d_model**2,
                "gates": 2 * num_tokens * d_model,
                "conv": 2 * num_tokens * self.kernel * d_model,
                "out_proj": 2 * num_tokens * d_model**2,
            }

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        self.kernel = config.kernel
        self.in_proj = Linear(d_model, 3 * d_model, config.bias)
        self.conv = nn.Parameter(torch.empty(d_model, config.kernel))
        self.conv_bias = nn.Parameter(torch.zeros(d_model)) if config.bias else None
        self.out_proj = Linear(d_model, d_model, config.bias)
        nn.init.uniform_(self.conv, -(config.kernel**-0.5), config.kernel**-0.5)

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        made_BTE = self.in_proj(x_BTD)
        if state is None and span.segments_BT is None and self.conv_bias is None:
            return self.out_proj(gated_conv(made_BTE, self.conv))
        b_BTD, c_BTD, u_BTD = made_BTE.chunk(3, -1)
        z_BTD = b_BTD * u_BTD
        past_BLD = None if state is None else state["conv"]
        y_BTD = causal_conv(z_BTD, self.conv, past_BLD, span.segments_BT)
        if past_BLD is not None:
            advance_past(past_BLD, z_BTD, span.lengths_B)
        return self._out(c_BTD, y_BTD)

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        b_BD, c_BD, u_BD = self.in_proj(x_BD).chunk(3, -1)
        z_BD = b_BD * u_BD
        y_BD = causal_conv_step(z_BD, self.conv, state["conv"])
        advance_past(state["conv"], z_BD[:, None])
        return self._out(c_BD, y_BD)

    def fast_form(self) -> GatedConv | None:
        if self.conv_bias is not None or self.kernel == 1:
            return None
        return GatedConv(self.in_proj.weight, self.conv, self.out_proj.weight)

    def _out(self, c: Tensor, y: Tensor) -> Tensor:
        if self.conv_bias is not None:
            y = y + self.conv_bias
        return self.out_proj(c * y)
