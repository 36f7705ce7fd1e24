"""RTF: a rational transfer function per channel (arXiv 2405.06147), trained on its true kernel.

``H(z) = h0 + (b_1 + b_2 z^-1 + .. + b_N z^-(N-1)) / (1 + a_1 z^-1 + .. + a_N z^-N)``: the state is
the last N values of ``w_t = u_t - a . (w_{t-1}, .., w_{t-N})``, read after the update:
``y_t = b . (w_t, .., w_{t-N+1}) + h0 u_t``. The authors' FFT kernel is that of a periodic input
(aliased), a different system from the recurrence unless the response dies within their fixed
length; chunks with exact state carry have no such length. ``a = v / (|v|_1 + |s|)``, one more
number s per channel, keeps ``sum |a| < 1``: every pole lies inside the unit circle (Montel's bound,
the authors' option).

Shape suffixes: B batch, T time, D model width, N order.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Span, State
from archloop.blocks.ops.long_conv import DenseSystem
from archloop.blocks.ops.precision import precise
from archloop.blocks.ssm import (
    ChannelSSM,
    ChannelSSMConfig,
    chunked_flops,
    dense_chunk_flops,
    run_system,
)

MARGIN = 1e-4
"""Least distance of sum |a| from 1, relative to |v|_1."""


class RTF(ChannelSSM):
    """N float32 values of state per channel, no complex numbers; about 2 d^2 parameters."""

    float32_params = frozenset({"a", "slack"})
    no_decay = frozenset({"a"})
    lr_scale = {"a": 0.25, "slack": 0.25}

    class Config(ChannelSSMConfig):
        """`order`: N."""

        order: Annotated[int, Gene((8, 16, 32))] = Field(16, ge=1)

        @property
        def num_states(self) -> int:
            return self.order

        def core_terms(self, d_model: int) -> dict[str, int]:
            return {"a": d_model * self.order, "b": d_model * self.order, "slack": d_model}

        def core_flops(self, d_model: int, num_tokens: int) -> int:
            made = dense_chunk_flops(num_tokens, self.order)
            return d_model * (chunked_flops(num_tokens, self.order) + made)

        def core_step_flops(self, d_model: int) -> int:
            return 4 * self.order * d_model

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        order = config.order
        self.a = nn.Parameter(torch.empty(d_model, order).uniform_(-1 / order, 1 / order))
        self.slack = nn.Parameter(torch.full((d_model,), 0.1))
        self.b = nn.Parameter(torch.randn(d_model, order) * order**-0.5)

    def core(self, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        a_DN = self.denominator()
        shift_NN = torch.eye(self.num_states, dtype=a_DN.dtype, device=a_DN.device)[:-1]
        below_DNN = shift_NN.expand(a_DN.shape[0], -1, -1)
        first_DN = torch.zeros_like(a_DN)
        first_DN[:, 0] = 1.0
        system = DenseSystem(torch.cat([-a_DN[:, None], below_DNN], 1), first_DN, precise(self.b))
        return run_system(system, u_BTD, state, span)

    def core_step(self, u_BD: Tensor, state: State) -> Tensor:
        w_BD = u_BD - (self.denominator() * state["x"]).sum(-1)
        x_BDN = torch.cat([w_BD[..., None], state["x"][..., :-1]], -1)
        state["x"].copy_(x_BDN)
        return (precise(self.b) * x_BDN).sum(-1)

    def denominator(self) -> Tensor:
        """Coefficients a (D, N), sum of magnitudes below 1."""
        v_DN, slack_D = precise(self.a), precise(self.slack)
        size_D = v_DN.abs().sum(-1) * (1 + MARGIN) + slack_D.abs() + 1e-6
        return v_DN / size_D[:, None]
