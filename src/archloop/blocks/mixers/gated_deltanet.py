"""Gated DeltaNet (arXiv 2412.06464), as in Qwen3-Next: a delta rule with one decay per head.

``g = -exp(A) softplus(W_a x + b)`` and ``beta = sigmoid(W_b x)`` per value head; the output is
``W_o(RMSNorm(o) * silu(W_z x))``, norm before gate. See `blocks.delta`.

Biases of the decay begin as in its authors' layer, so that heads remember from one to a thousand
tokens. transformers fills them with ones before it loads weights: with these a head forgets
within a token, and what is trained from there learns no recall (``docs/log.md``).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene
from archloop.blocks.delta import DeltaConfig, DeltaMixer
from archloop.blocks.linear import Linear
from archloop.blocks.ops.decay_gate import decay_gate
from archloop.blocks.ops.precision import precise
from archloop.blocks.ops.time_steps import initial_dt_bias


class GatedDeltaNet(DeltaMixer):
    """Gated delta rule; ``values_per_key * head_dim * d_model`` values of state."""

    gate_activation = "silu"

    class Config(DeltaConfig):
        """Qwen3-Next: head_dim 128, two value heads to a key head."""

        values_per_key: Annotated[int, Gene((1, 2))] = Field(2, ge=1, le=16)

        def _values_per_key(self) -> int:
            return self.values_per_key

        def _vector(self) -> bool:
            return False

        def _gate_terms(self, d_model: int) -> dict[str, int]:
            heads = self.sizes(d_model)["num_heads"]
            return {"decay_proj": d_model * 2 * heads, "log_rate": heads, "dt_bias": heads}

        def _output_gate_terms(self, d_model: int) -> dict[str, int]:
            return {"gate_proj": d_model * self.widths(d_model)[1]}

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model, consumer)
        self.gate_proj = Linear(d_model, self.num_heads * self.head_dim)
        if self.recurrent and not consumer:
            self.decay_proj = Linear(d_model, 2 * self.num_heads)
            self.log_rate = nn.Parameter(torch.empty(self.num_heads).uniform_(0.01, 16).log())
            self.dt_bias = nn.Parameter(initial_dt_bias(self.num_heads))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.decay_proj(x).chunk(2, -1)
        g = decay_gate(a, self.dt_bias, precise(self.log_rate).exp())
        return g, torch.sigmoid(precise(b))

    def output_gate(self, x: Tensor) -> Tensor:
        return self.gate_proj(x)
