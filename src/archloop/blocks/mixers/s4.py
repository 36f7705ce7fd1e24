"""S4: a diagonal-plus-low-rank state space per channel, from HiPPO-LegS (arXiv 2111.00396).

``A = Lambda - P P^*`` in conjugate pairs is, on the real and imaginary parts z of one of each pair,
the real matrix ``A = L - 2 p p^T``: L holds 2x2 rotations with negative real part and p stacks the
parts of P. A + A^T is negative definite by parametrisation, so its bilinear discretisation
``(1 - dt/2 A)^-1 (1 + dt/2 A)`` shrinks every state. The step solves by Woodbury's identity in
O(N) per channel; the parallel form makes the discrete matrix once a call. Lambda, P and B are one
for all channels, dt and C per channel, as the authors' default.

Shape suffixes: B batch, T time, D model width, N real states, M = N/2 modes.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from archloop.blocks.base import Gene, Span, State
from archloop.blocks.ops.hippo import dplr
from archloop.blocks.ops.long_conv import DenseSystem, halves, times
from archloop.blocks.ops.precision import precise
from archloop.blocks.ops.time_steps import log_uniform
from archloop.blocks.ssm import (
    ChannelSSM,
    ChannelSSMConfig,
    chunked_flops,
    dense_chunk_flops,
    run_system,
)


class S4(ChannelSSM):
    """N float32 values of state per channel; costs about 2 d^2 parameters."""

    float32_params = frozenset({"log_dt", "log_decay", "frequency", "p", "b"})
    no_decay = frozenset({"p", "b"})
    lr_scale = {
        "log_decay": 0.25,
        "frequency": 0.25,
        "p": 0.25,
        "b": 0.25,
        "log_dt": 0.25,
    }

    class Config(ChannelSSMConfig):
        """`state_dim`: N."""

        state_dim: Annotated[int, Gene((16, 32, 64))] = Field(32, ge=2, multiple_of=2)

        @property
        def num_states(self) -> int:
            return self.state_dim

        def core_terms(self, d_model: int) -> dict[str, int]:
            modes = self.state_dim // 2
            return {
                "log_dt": d_model,
                "log_decay": modes,
                "frequency": modes,
                "p": 2 * modes,
                "b": 2 * modes,
                "c": 2 * modes * d_model,
            }

        def core_flops(self, d_model: int, num_tokens: int) -> int:
            made = dense_chunk_flops(num_tokens, self.state_dim)
            return d_model * (chunked_flops(num_tokens, self.state_dim) + made)

        def core_step_flops(self, d_model: int) -> int:
            return 20 * self.state_dim * d_model

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        hippo, real = dplr(config.state_dim), torch.get_default_dtype()
        self.log_dt = nn.Parameter(log_uniform(d_model, 1e-3, 1e-1))
        self.log_decay = nn.Parameter(torch.log(-hippo.poles_M.real).to(real))
        self.frequency = nn.Parameter(hippo.poles_M.imag.to(real))
        self.p = nn.Parameter(torch.view_as_real(hippo.low_rank_M).T.to(real).contiguous())
        self.b = nn.Parameter(torch.view_as_real(hippo.input_M).T.to(real).contiguous())
        self.c = nn.Parameter(torch.randn(2, d_model, config.state_dim // 2) * 0.5**0.5)

    def core(self, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        channels, states = self.skip.shape[0], self.num_states
        eye_NDN = torch.eye(states, dtype=u_BTD.dtype, device=u_BTD.device)[:, None]
        columns_NDN = self._solve(self._forward_half(eye_NDN.expand(-1, channels, -1)))
        system = DenseSystem(columns_NDN.permute(1, 2, 0), self._input(), self._output())
        return run_system(system, u_BTD, state, span)

    def core_step(self, u_BD: Tensor, state: State) -> Tensor:
        x_BDN = self._solve(self._forward_half(state["x"])) + self._input() * u_BD[..., None]
        state["x"].copy_(x_BDN)
        return (self._output() * x_BDN).sum(-1)

    def _input(self) -> Tensor:
        """``(1 - dt/2 A)^-1 dt B`` for each channel, (D, N)."""
        b_N = precise(self.b).flatten()
        return self._solve(precise(self.log_dt).exp()[:, None] * b_N)

    def _output(self) -> Tensor:
        """``y = 2 Re(C z)`` as weights of the real and imaginary parts, (D, N)."""
        cr, ci = precise(self.c).unbind(0)
        return 2 * torch.cat([cr, -ci], -1)

    def _forward_half(self, x: Tensor) -> Tensor:
        """``(1 + dt/2 A) x`` for each channel, (..., D, N)."""
        half_D1 = precise(self.log_dt).exp()[:, None] / 2
        p_N = precise(self.p).flatten()
        pole = (-precise(self.log_decay).exp(), precise(self.frequency))
        turned = torch.cat(times(pole, halves(x)), -1)
        return x + half_D1 * (turned - 2 * p_N * (x * p_N).sum(-1, keepdim=True))

    def _solve(self, x: Tensor) -> Tensor:
        """``(1 - dt/2 A)^-1 x`` for each channel, by Woodbury's identity."""
        dt_D1 = precise(self.log_dt).exp()[:, None]
        p_N = precise(self.p).flatten()
        y, q_DN = self._solve_diagonal(x, dt_D1 / 2), self._solve_diagonal(p_N, dt_D1 / 2)
        scale_D1 = dt_D1 / (1 + dt_D1 * (q_DN * p_N).sum(-1, keepdim=True))
        return y - scale_D1 * q_DN * (y * p_N).sum(-1, keepdim=True)

    def _solve_diagonal(self, x: Tensor, half_D1: Tensor) -> Tensor:
        """``(1 - half L)^-1 x``."""
        real = 1 + half_D1 * precise(self.log_decay).exp()
        imag = -half_D1 * precise(self.frequency)
        square = real.square() + imag.square()
        return torch.cat(times((real / square, -imag / square), halves(x)), -1)
