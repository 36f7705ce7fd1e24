"""Squared-ReLU feed-forward (Primer, arXiv 2109.08668), as in Nemotron-H:
``W_down relu(W_up x)^2``, without a gate."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import ChannelConfig, ChannelMixer, Gene
from archloop.blocks.channel_mixers.swiglu import hidden_width
from archloop.blocks.linear import Linear


class ReLU2(ChannelMixer):
    """Feed-forward without a gate; 2 d d_ff parameters."""

    class Config(ChannelConfig):
        """The hidden width is `expansion` times the model width, rounded to a multiple of 8."""

        through_sizes = frozenset({"expansion"})
        expansion: Annotated[float, Gene((3.0, 4.0, 5.0, 6.0))] = Field(4.0, gt=0, le=64)

        def sizes(self, d_model: int) -> dict[str, int]:
            return {"d_ff": hidden_width(self.expansion, d_model)}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            d_ff = hidden_width(self.expansion, d_model)
            return {"up_proj": d_model * d_ff, "down_proj": d_ff * d_model}

        def prefill_flops(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> int:
            return num_tokens * 4 * d_model * hidden_width(self.expansion, d_model)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        d_ff = hidden_width(config.expansion, d_model)
        self.up_proj = Linear(d_model, d_ff)
        self.down_proj = Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x_BTD)).square())
