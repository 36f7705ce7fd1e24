"""Liquid-S4: S4D whose transition moves with its input, by the exact recurrence.

``x_k = (Abar + Bbar v_k) x_{k-1} + Bbar v_k``, ``y = 2 Re(C x) + D u`` per channel
(arXiv 2209.12951, eq. 8, diagonal A). The authors' code trains a convolution plus a correction that
reads future inputs, and decodes with plain S4; this is the equation itself. It is stable by
parametrisation:
``v = tanh(u)`` and ``Bbar = (1 - |Abar|) beta / sqrt(1 + |beta|^2)`` give ``|Abar + Bbar v| < 1``.

Shape suffixes: B batch, T time, D model width, M = N/2 modes.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Span, State
from archloop.blocks.ops.hippo import linear_poles
from archloop.blocks.ops.liquid_scan import liquid_scan, liquid_step, read_out
from archloop.blocks.ops.long_conv import halves
from archloop.blocks.ops.precision import precise
from archloop.blocks.ops.scan import Pair
from archloop.blocks.ops.time_steps import log_uniform
from archloop.blocks.ssm import ChannelSSM, ChannelSSMConfig


class LiquidS4(ChannelSSM):
    """N float32 values of state per channel; costs about 2 d^2 parameters."""

    float32_params = frozenset({"log_dt", "log_decay", "frequency"})
    no_decay = frozenset({"log_decay", "frequency", "beta"})
    lr_scale = {
        "log_decay": 0.25,
        "frequency": 0.25,
        "beta": 0.25,
        "log_dt": 0.25,
    }

    class Config(ChannelSSMConfig):
        """`state_dim`: N. The paper finds small states enough (7 to 64)."""

        state_dim: Annotated[int, Gene((8, 16, 32))] = Field(16, ge=2, multiple_of=2)

        @property
        def num_states(self) -> int:
            return self.state_dim

        def core_terms(self, d_model: int) -> dict[str, int]:
            values = self.state_dim // 2 * d_model
            terms = {"log_dt": d_model, "log_decay": values, "frequency": values}
            return terms | {"beta": 2 * values, "c": 2 * values}

        def core_flops(self, d_model: int, num_tokens: int) -> int:
            return 8 * self.state_dim * d_model * num_tokens

        def core_step_flops(self, d_model: int) -> int:
            return 8 * self.state_dim * d_model

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        modes = config.state_dim // 2
        self.log_dt = nn.Parameter(log_uniform(d_model, 1e-3, 1e-1))
        self.log_decay, self.frequency = map(nn.Parameter, linear_poles(d_model, modes))
        self.beta = nn.Parameter(
            torch.cat([torch.ones(1, d_model, modes), torch.zeros(1, d_model, modes)])
        )
        self.c = nn.Parameter(torch.randn(2, d_model, modes) * 0.5**0.5)

    def core(self, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        a, b, c = self.coefficients()
        if state is None:
            zero_BDM = u_BTD.new_zeros(u_BTD.shape[0], *a[0].shape)
            return liquid_scan(u_BTD.tanh(), a, b, c, (zero_BDM, zero_BDM))[0]
        start = halves(state["x"].to(u_BTD.dtype))
        y_BTD, last = liquid_scan(u_BTD.tanh(), a, b, c, start, span.valid_BT)
        state["x"].copy_(torch.cat(last, -1))
        return y_BTD

    def core_step(self, u_BD: Tensor, state: State) -> Tensor:
        a, b, c = self.coefficients()
        h = liquid_step(u_BD.tanh(), a, b, halves(state["x"]))
        state["x"].copy_(torch.cat(h, -1))
        return read_out(c, h)

    def coefficients(self) -> tuple[Pair, Pair, Pair]:
        """Abar, Bbar and C, (D, M) each."""
        dt_D1 = precise(self.log_dt).exp()[:, None]
        grow, angle = -precise(self.log_decay).exp() * dt_D1, precise(self.frequency) * dt_D1
        br, bi = precise(self.beta).unbind(0)
        room = -torch.expm1(grow) / (1 + br.square() + bi.square()).sqrt()
        cr, ci = precise(self.c).unbind(0)
        a = (grow.exp() * angle.cos(), grow.exp() * angle.sin())
        return a, (room * br, room * bi), (cr, ci)
