"""SwiGLU feed-forward (arXiv 2002.05202): ``W_down(silu(W_gate x) * W_up x)``."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import ChannelMixer, Gene
from archloop.blocks.fast import GatedFeedForward
from archloop.blocks.feed_forward import FeedForwardConfig, hidden_width
from archloop.blocks.linear import Linear
from archloop.blocks.ops.silu_gate import silu_gate


class SwiGLU(ChannelMixer):
    """Gated feed-forward; 3 d d_ff parameters. Gate and up projection are one matrix."""

    class Config(FeedForwardConfig):
        """As `FeedForwardConfig`."""

        gate_multiplier: Annotated[float, Gene((0.5, 1.0, 2.0))] = Field(1.0, gt=0)
        """Factor on the gate before its activation (Falcon-H1)."""

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        d_ff = hidden_width(config.expansion, d_model)
        self.gate_multiplier = config.gate_multiplier
        self.gate_up_proj = Linear(d_model, 2 * d_ff)
        self.down_proj = Linear(d_ff, d_model)
        self.adapter = config.adapter(d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.gate_up_proj(x_BTD)
        if self.adapter is not None:
            hidden = hidden + self.adapter(x_BTD)
        if self.gate_multiplier != 1.0:
            gate, up = hidden.chunk(2, -1)
            return self.down_proj(F.silu(gate * self.gate_multiplier) * up)
        return self.down_proj(silu_gate(hidden))

    def fast_form(self) -> GatedFeedForward | None:
        if self.gate_multiplier != 1.0 or self.adapter is not None:
            return None
        return GatedFeedForward(self.gate_up_proj.weight, self.down_proj.weight)
