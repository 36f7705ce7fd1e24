"""SwiGLU feed-forward (arXiv 2002.05202): ``W_down(silu(W_gate x) * W_up x)``."""

from torch import Tensor

from archloop.blocks.base import ChannelMixer
from archloop.blocks.fast import GatedFeedForward
from archloop.blocks.feed_forward import FeedForwardConfig, hidden_width
from archloop.blocks.linear import Linear
from archloop.blocks.ops.silu_gate import silu_gate


class SwiGLU(ChannelMixer):
    """Gated feed-forward; 3 d d_ff parameters. Gate and up projection are one matrix."""

    class Config(FeedForwardConfig):
        """As `FeedForwardConfig`."""

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
