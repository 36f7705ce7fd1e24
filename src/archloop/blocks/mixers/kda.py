"""Kimi Delta Attention (arXiv 2510.26692): a delta rule with a decay per key channel.

``g = -exp(A_head) softplus(W_2 W_1 x + b)`` per channel, of rank head_dim;
``beta = sigmoid(W_b x)``; the output is ``W_o(RMSNorm(o) * sigmoid(V_2 V_1 x))``, norm before gate.
See `blocks.delta`.
"""

import torch
from torch import Tensor, nn

from archloop.blocks.delta import DeltaConfig, DeltaMixer
from archloop.blocks.linear import Linear
from archloop.blocks.ops.decay_gate import decay_gate
from archloop.blocks.ops.precision import precise
from archloop.blocks.ops.time_steps import initial_dt_bias


class KDA(DeltaMixer):
    """Delta rule with fine-grained decay; ``head_dim * d_model`` values of state."""

    gate_activation = "sigmoid"

    class Config(DeltaConfig):
        """Kimi Linear: head_dim 128."""

        def _values_per_key(self) -> int:
            return 1

        def _vector(self) -> bool:
            return True

        def _gate_terms(self, d_model: int) -> dict[str, int]:
            heads, inner = self.sizes(d_model)["num_heads"], self.widths(d_model)[0]
            return {
                "decay_down": d_model * self.head_dim,
                "decay_up": self.head_dim * inner,
                "beta_proj": d_model * heads,
                "log_rate": heads,
                "dt_bias": inner,
            }

        def _output_gate_terms(self, d_model: int) -> dict[str, int]:
            inner = self.widths(d_model)[0]
            return {"gate_down": d_model * self.head_dim, "gate_up": self.head_dim * inner}

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model, consumer)
        rank, inner = self.head_dim, self.num_heads * self.head_dim
        self.gate_down, self.gate_up = Linear(d_model, rank), Linear(rank, inner)
        if self.recurrent and not consumer:
            self.decay_down, self.decay_up = Linear(d_model, rank), Linear(rank, inner)
            self.beta_proj = Linear(d_model, self.num_heads)
            self.log_rate = nn.Parameter(torch.empty(self.num_heads).uniform_(1, 16).log())
            self.dt_bias = nn.Parameter(initial_dt_bias(inner))

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, beta = self.decay_up(self.decay_down(x)), self.beta_proj(x)
        rate = precise(self.log_rate).exp().repeat_interleave(self.head_dim)
        return decay_gate(raw, self.dt_bias, rate), torch.sigmoid(precise(beta))

    def output_gate(self, x: Tensor) -> Tensor:
        return self.gate_up(self.gate_down(x))
