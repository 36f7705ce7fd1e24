"""HGRN2 (arXiv 2404.07904): gated linear attention whose key is what the gate lets go of.

``f_t = b + (1 - b) sigmoid(W_f x_t)``; ``S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T``;
``o_t = dk^-1/2 S_t^T silu(W_q x_t)``; ``y_t = W_o RMSNorm(o_t)``, the norm over the full width, and
no output gate. The lower bound b rises with depth, so that upper blocks remember longer.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import Gene
from archloop.blocks.linear import Linear
from archloop.blocks.linear_attention import (
    LinearAttention,
    LinearAttentionConfig,
    LinearAttentionSizes,
)
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.bounded_gate import bounded_gate
from archloop.blocks.widths import count_heads


class HGRN2(LinearAttention):
    """Hierarchically gated linear RNN; ``head_dim * d_model`` values of state."""

    placed = True

    class Config(LinearAttentionConfig):
        """The paper's state expansion is 128 (head_dim); keys and values are equally wide.

        `lower_bound` None takes block_index / num_blocks, where the paper's cumulative softmax over
        blocks starts; a number sets it for this block. A block with weights_from has its source's.
        """

        head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=1)
        lower_bound: float | None = Field(None, ge=0, lt=1)
        norm_eps: float = Field(1e-5, gt=0)

        def sizes(self, d_model: int) -> LinearAttentionSizes:
            num_heads = count_heads(d_model, self.head_dim, f"d_model={d_model}")
            return {"num_heads": num_heads, "head_dim": self.head_dim, "key_dim": self.head_dim}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            terms = {"query_proj": d_model**2, "norm": d_model, "out_proj": d_model**2}
            return terms | ({} if consumer else {"feature_proj": 2 * d_model**2})

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        self.lower_bound = config.lower_bound
        if self.lower_bound is None:
            self.lower_bound = block_index / num_blocks
        self.query_proj = Linear(d_model, d_model)
        self.norm = RMSNorm(d_model, config.norm_eps)
        self.out_proj = Linear(d_model, d_model)
        if not consumer:
            self.feature_proj = Linear(d_model, 2 * d_model)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f, v = self.feature_proj(x).chunk(2, -1)
        assert self.lower_bound is not None
        k, g = bounded_gate(f, self.lower_bound)
        return k, v, g

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return F.silu(self.query_proj(x)) * self.key_dim**-0.5, None

    def output(self, o: Tensor, gate: Tensor | None) -> Tensor:
        return self.out_proj(self.norm(o))
