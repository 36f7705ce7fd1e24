"""What feed-forwards share: one hidden width that follows from the model's, and its costs."""

from typing import Annotated, ClassVar, Self, TypedDict

from pydantic import Field

from archloop.blocks.adapter import Adapter, num_params
from archloop.blocks.base import ChannelConfig, Gene
from archloop.blocks.config import matrix_flops

WIDTH_MULTIPLE = 8
"""Hidden widths are multiples of this, which vector units like and every LFM2 size already is."""


class HiddenSizes(TypedDict):
    """What follows from the model width: that of the hidden layer."""

    d_ff: int


class FeedForwardConfig(ChannelConfig):
    """The hidden width is `expansion` times the model width, rounded to a multiple of 8.

    Attributes:
        into: matrices from the model's width to the hidden one: a gate and an up projection, or
            the latter alone.
    """

    through_sizes = frozenset({"expansion"})
    unshared = frozenset({"adapter"})
    into: ClassVar[int] = 2
    expansion: Annotated[float, Gene((2.0, 2.5, 3.0, 3.5, 4.0))] = Field(4.0, gt=0, le=64)
    adapter_rank: Annotated[int, Gene((0, 32, 128))] = Field(0, ge=0, le=4096)
    """Of a block's own addition to the matrix into the hidden layer, where blocks share it
    (Zamba2); 0 for none."""

    def sizes(self, d_model: int) -> HiddenSizes:
        return {"d_ff": hidden_width(self.expansion, d_model)}

    def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
        d_ff = hidden_width(self.expansion, d_model)
        name = "gate_up_proj" if self.into == 2 else "up_proj"
        terms = {name: d_model * self.into * d_ff, "down_proj": d_ff * d_model}
        if self.adapter_rank:
            terms["adapter"] = num_params(d_model, (self.into * d_ff,), self.adapter_rank)
        return terms

    def adapter(self, d_model: int) -> Adapter | None:
        """The module of the block's own addition, if it has one."""
        if not self.adapter_rank:
            return None
        hidden = self.into * hidden_width(self.expansion, d_model)
        return Adapter(d_model, (hidden,), self.adapter_rank)

    def flop_terms(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        params = self.param_terms(d_model)
        return matrix_flops(params, params, num_tokens)

    def widened(self, d_model: int, factor: float, more: int = 0) -> Self:
        width = hidden_width(hidden_width(self.expansion, d_model) * factor + more, 1)
        return self.model_copy(update={"expansion": width / d_model})


def hidden_width(expansion: float, d_model: int) -> int:
    """``expansion * d_model`` to the nearest positive multiple of 8."""
    return max(1, round(expansion * d_model / WIDTH_MULTIPLE)) * WIDTH_MULTIPLE
