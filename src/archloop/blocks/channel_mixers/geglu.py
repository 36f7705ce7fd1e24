"""GeGLU feed-forward (arXiv 2002.05202), as in Gemma: ``W_down(gelu(W_gate x) * W_up x)``."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import ChannelMixer, Gene
from archloop.blocks.feed_forward import FeedForwardConfig, hidden_width
from archloop.blocks.linear import Linear


class GeGLU(ChannelMixer):
    """Gated feed-forward; 3 d d_ff parameters. Gate and up projection are one matrix."""

    class Config(FeedForwardConfig):
        """As SwiGLU's; Gemma's hidden widths are larger."""

        expansion: Annotated[float, Gene((3.0, 4.0, 5.0, 6.0))] = Field(4.0, gt=0, le=64)
        gelu: Literal["tanh", "exact"] = "tanh"
        """GELU approximated by tanh (arXiv 1606.08415), or by the error function (Zamba2)."""

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        d_ff = hidden_width(config.expansion, d_model)
        self.gate_up_proj = Linear(d_model, 2 * d_ff)
        self.down_proj = Linear(d_ff, d_model)
        self.adapter = config.adapter(d_model)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.gate_up_proj(x_BTD)
        if self.adapter is not None:
            hidden = hidden + self.adapter(x_BTD)
        gate_BTF, up_BTF = hidden.chunk(2, -1)
        return self.down_proj(F.gelu(gate_BTF, approximate=self.approximate) * up_BTF)
