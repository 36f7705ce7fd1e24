"""S4D: a diagonal state space per channel (arXiv 2206.11893), initialised as S4D-Lin.

Each channel has N real states held as N/2 complex modes, one of each conjugate pair:
``x' = A x + u``, ``y = 2 Re(C x) + D u``, discretised by zero-order hold. B is 1, since C alone
would absorb it. Real parts of A are negative by parametrisation, so modes always decay.

Shape suffixes: B batch, T time, D model width, M = N/2 modes.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Span, State
from archloop.blocks.ops.hippo import linear_poles
from archloop.blocks.ops.long_conv import DiagonalSystem, halves, times
from archloop.blocks.ops.precision import precise
from archloop.blocks.ops.scan import Pair
from archloop.blocks.ops.time_steps import log_uniform
from archloop.blocks.ops.zoh import zoh
from archloop.blocks.ssm import ChannelSSM, ChannelSSMConfig, chunked_flops, run_system


class S4D(ChannelSSM):
    """N float32 values of state per channel; costs about 2 d^2 parameters."""

    float32_params = frozenset({"log_dt", "log_decay", "frequency"})
    no_decay = frozenset({"log_decay", "frequency"})
    lr_scale = {"log_decay": 0.25, "frequency": 0.25, "log_dt": 0.25}

    class Config(ChannelSSMConfig):
        """`state_dim`: N."""

        state_dim: Annotated[int, Gene((16, 32, 64))] = Field(32, ge=2, multiple_of=2)

        @property
        def num_states(self) -> int:
            return self.state_dim

        def core_terms(self, d_model: int) -> dict[str, int]:
            values = self.state_dim // 2 * d_model
            return {"log_dt": d_model, "log_decay": values, "frequency": values, "c": 2 * values}

        def core_flops(self, d_model: int, num_tokens: int) -> int:
            return d_model * chunked_flops(num_tokens, self.state_dim)

        def core_step_flops(self, d_model: int) -> int:
            return 6 * self.state_dim * d_model

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        modes = config.state_dim // 2
        self.log_dt = nn.Parameter(log_uniform(d_model, 1e-3, 1e-1))
        self.log_decay, self.frequency = map(nn.Parameter, linear_poles(d_model, modes))
        self.c = nn.Parameter(torch.randn(2, d_model, modes) * 0.5**0.5)

    def core(self, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        decay, frequency, dt, c = self._poles()
        _, b = zoh(decay, frequency, dt)
        system = DiagonalSystem((decay * dt, frequency * dt), b, c)
        return run_system(system, u_BTD, state, span)

    def core_step(self, u_BD: Tensor, state: State) -> Tensor:
        decay, frequency, dt, (cr, ci) = self._poles()
        a, (br, bi) = zoh(decay, frequency, dt)
        kept_r, kept_i = times(a, halves(state["x"]))
        re, im = kept_r + br * u_BD[..., None], kept_i + bi * u_BD[..., None]
        state["x"].copy_(torch.cat([re, im], -1))
        return 2 * (cr * re - ci * im).sum(-1)

    def _poles(self) -> tuple[Tensor, Tensor, Tensor, Pair]:
        """Real and imaginary part of A, time step, C."""
        dt_D1 = precise(self.log_dt).exp()[:, None]
        cr, ci = precise(self.c).unbind(0)
        return -precise(self.log_decay).exp(), precise(self.frequency), dt_D1, (cr, ci)
