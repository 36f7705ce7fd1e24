"""Gated linear attention (arXiv 2312.06635): a matrix state whose every key channel forgets.

``g_t = logsigmoid(W_2 W_1 x_t + b) / 16``; ``S_t = diag(exp g_t) S_{t-1} + k_t v_t^T``;
``o_t = dk^-1/2 S_t^T q_t``; ``y_t = W_o(RMSNorm(o_t) * silu(W_g x_t))``, the norm per head.
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
from archloop.blocks.ops.gated_norm import gated_norm
from archloop.blocks.ops.precision import recurrent_dtype
from archloop.blocks.widths import count_heads
from archloop.errors import UserError


class GLA(LinearAttention):
    """Gated linear attention; ``key_ratio * head_dim * d_model`` values of state."""

    class Config(LinearAttentionConfig):
        """The paper has four heads at every width; a fixed head width keeps the gene absolute."""

        through_sizes = frozenset({"key_ratio"})
        head_dim: Annotated[int, Gene((64, 128, 256))] = Field(64, ge=2, multiple_of=2)
        key_ratio: Annotated[float, Gene((0.5, 1.0))] = Field(0.5, gt=0, le=4)
        gate_rank: int = Field(16, ge=1)
        gate_divisor: float = Field(16.0, gt=0)
        norm_eps: float = Field(1e-5, gt=0)

        def sizes(self, d_model: int) -> LinearAttentionSizes:
            num_heads = count_heads(d_model, self.head_dim, f"d_model={d_model}")
            key_dim = round(self.head_dim * self.key_ratio)
            if key_dim != self.head_dim * self.key_ratio:
                raise UserError(
                    f"key_ratio={self.key_ratio} times head_dim={self.head_dim} is not whole; "
                    "allowed: multiples of 1/head_dim"
                )
            return {"num_heads": num_heads, "head_dim": self.head_dim, "key_dim": key_dim}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            heads, key_dim, _ = self._heads(d_model)
            keys = heads * key_dim
            terms = {
                "query_proj": d_model * (keys + d_model),
                "norm": self.head_dim,
                "out_proj": d_model * d_model,
            }
            if consumer:
                return terms
            return terms | {
                "feature_proj": d_model * (keys + d_model + self.gate_rank),
                "gate_proj": (self.gate_rank + 1) * keys,
            }

        def _matrices(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
            terms = super()._matrices(d_model, num_tokens, consumer)
            if consumer:
                return terms
            heads, key_dim, _ = self._heads(d_model)
            return terms | {"gate_proj": 2 * num_tokens * self.gate_rank * heads * key_dim}

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        self.gate_divisor = config.gate_divisor
        keys = self.num_heads * self.key_dim
        self.query_widths = [keys, d_model]
        self.feature_widths = [keys, d_model, config.gate_rank]
        self.query_proj = Linear(d_model, sum(self.query_widths))
        self.norm = RMSNorm(self.head_dim, config.norm_eps)
        self.out_proj = Linear(d_model, d_model)
        if not consumer:
            self.feature_proj = Linear(d_model, sum(self.feature_widths))
            self.gate_proj = Linear(config.gate_rank, keys, bias=True)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v, low = self.feature_proj(x).split(self.feature_widths, -1)
        logits = self.gate_proj(low)
        g = F.logsigmoid(logits.to(recurrent_dtype(logits.dtype))) / self.gate_divisor
        return k, v, g

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        q, gate = self.query_proj(x).split(self.query_widths, -1)
        return q * self.key_dim**-0.5, gate

    def output(self, o: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        o, gate = (x.unflatten(-1, (self.num_heads, -1)) for x in (o, gate))
        normed = gated_norm(o, self.norm.weight, self.norm.eps, gate, "silu")
        return self.out_proj(normed.flatten(-2))
