"""SwiGLU feed-forward (arXiv 2002.05202): ``W_down(silu(W_gate x) * W_up x)``."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from archloop.blocks.base import ChannelConfig, ChannelMixer, Gene
from archloop.blocks.fast import GatedFeedForward
from archloop.blocks.linear import Linear
from archloop.blocks.ops.silu_gate import silu_gate

WIDTH_MULTIPLE = 8
"""Hidden widths are multiples of this, which vector units like and every LFM2 size already is."""


class SwiGLU(ChannelMixer):
    """Gated feed-forward; 3 d d_ff parameters. Gate and up projection are one matrix."""

    class Config(ChannelConfig):
        """The hidden width is `expansion` times the model width, rounded to a multiple of 8."""

        through_sizes = frozenset({"expansion"})
        expansion: Annotated[float, Gene((2.0, 2.5, 3.0, 3.5, 4.0))] = Field(4.0, gt=0, le=64)

        def sizes(self, d_model: int) -> dict[str, int]:
            return {"d_ff": hidden_width(self.expansion, d_model)}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            d_ff = hidden_width(self.expansion, d_model)
            return {"gate_up_proj": d_model * 2 * d_ff, "down_proj": d_ff * d_model}

        def prefill_flops(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> int:
            return num_tokens * 6 * d_model * hidden_width(self.expansion, d_model)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        d_ff = hidden_width(config.expansion, d_model)
        self.gate_up_proj = Linear(d_model, 2 * d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(silu_gate(self.gate_up_proj(x_BTD)))

    def fast_form(self) -> GatedFeedForward:
        return GatedFeedForward(self.gate_up_proj.weight, self.down_proj.weight)


def hidden_width(expansion: float, d_model: int) -> int:
    """``expansion * d_model`` to the nearest positive multiple of 8."""
    return max(1, round(expansion * d_model / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
