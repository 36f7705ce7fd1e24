"""GeGLU feed-forward (arXiv 2002.05202), as in Gemma: ``W_down(gelu(W_gate x) * W_up x)``, with
the approximation of GELU by tanh (arXiv 1606.08415)."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import ChannelConfig, ChannelMixer, Gene
from archloop.blocks.channel_mixers.swiglu import hidden_width
from archloop.blocks.linear import Linear


class GeGLU(ChannelMixer):
    """Gated feed-forward; 3 d d_ff parameters. Gate and up projection are one matrix."""

    class Config(ChannelConfig):
        """The hidden width is `expansion` times the model width, rounded to a multiple of 8."""

        through_sizes = frozenset({"expansion"})
        expansion: Annotated[float, Gene((3.0, 4.0, 5.0, 6.0))] = Field(4.0, gt=0, le=64)

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
        gate_BTF, up_BTF = self.gate_up_proj(x_BTD).chunk(2, -1)
        return self.down_proj(F.gelu(gate_BTF, approximate="tanh") * up_BTF)
