"""Squared-ReLU feed-forward (Primer, arXiv 2109.08668), as in Nemotron-H:
``W_down relu(W_up x)^2``, without a gate."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import ChannelMixer, Gene
from archloop.blocks.feed_forward import FeedForwardConfig, hidden_width
from archloop.blocks.linear import Linear


class ReLU2(ChannelMixer):
    """Feed-forward without a gate; 2 d d_ff parameters."""

    class Config(FeedForwardConfig):
        """Without a gate, hidden widths are larger."""

        into: ClassVar[int] = 1
        expansion: Annotated[float, Gene((3.0, 4.0, 5.0, 6.0))] = Field(4.0, gt=0, le=64)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        d_ff = hidden_width(config.expansion, d_model)
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)
        self.adapter = config.adapter(d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.up_proj(x_BTD)
        if self.adapter is not None:
            hidden = hidden + self.adapter(x_BTD)
        return self.down_proj(F.relu(hidden).square())
