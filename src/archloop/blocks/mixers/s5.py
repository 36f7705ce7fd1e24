"""S5: one state space with many inputs and outputs, diagonal (arXiv 2208.04933).

``x_k = Lbar x_{k-1} + Bbar u_k``, ``y = Re(C x) + D u``, P complex modes for the whole width,
discretised by zero-order hold: ``Lbar = exp(L dt)``, ``Bbar = (Lbar - 1)/L B``. Then the paper's
gate, ``GELU(y) * sigmoid(W GELU(y))``. Conjugate modes are not stored: C holds their factor of 2.
Real parts of L are negative by parametrisation, so |Lbar| < 1 always.

A consumer reads the producer's states with a C, D and gate of its own.

Shape suffixes: B batch, T time, D model width, P modes.
"""

from typing import Annotated, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops.hippo import dplr
from archloop.blocks.ops.precision import KeepsFloat32, precise
from archloop.blocks.ops.scan import Pair, scan_pair
from archloop.blocks.ops.time_steps import log_uniform
from archloop.blocks.ops.zoh import zoh

LARGEST_BLOCK = 32
"""Modes of one HiPPO matrix at the start."""


class Sizes(TypedDict):
    """What follows from the model width."""

    num_modes: int


class S5(KeepsFloat32, SharingMixer):
    """Diagonal MIMO state space; 2 P float32 values of state for the layer."""

    float32_params = frozenset({"log_dt", "log_decay", "frequency"})
    no_decay = frozenset({"b.weight"})
    lr_scale = {"b.weight": 0.25, "log_decay": 0.25, "frequency": 0.25, "log_dt": 0.25}

    class Config(MixerConfig):
        """`modes`: complex modes over d_model (0.5: as many real states as channels)."""

        through_sizes = frozenset({"modes"})
        modes: Annotated[float, Gene((0.25, 0.5, 1.0))] = Field(0.5, gt=0, le=8)

        def sizes(self, d_model: int) -> Sizes:
            return {"num_modes": max(1, round(self.modes * d_model))}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            modes = self.sizes(d_model)["num_modes"]
            terms = {"c": 2 * modes * d_model, "d": d_model, "gate": d_model**2}
            if consumer:
                return terms
            vectors = dict.fromkeys(("log_decay", "frequency", "log_dt"), modes)
            return terms | {"b": d_model * 2 * modes} | vectors

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            modes = (self.sizes(d_model)["num_modes"],)
            return {"re": Held("recurrent", modes), "im": Held("recurrent", modes)}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            params = self.param_terms(d_model, consumer=consumer)
            terms = matrix_flops(params, ("b", "c", "d", "gate"), num_tokens)
            if not consumer:
                terms["scan"] = 14 * self.sizes(d_model)["num_modes"] * num_tokens
            return terms

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        modes = config.sizes(d_model)["num_modes"]
        self.c = Linear(2 * modes, d_model)
        self.d = nn.Parameter(torch.randn(d_model))
        self.gate = Linear(d_model, d_model)
        if consumer:
            return
        self.b = Linear(d_model, 2 * modes)
        self.log_decay = nn.Parameter(torch.empty(modes))
        self.frequency = nn.Parameter(torch.empty(modes))
        self.log_dt = nn.Parameter(log_uniform(modes, 1e-3, 1e-1))
        self._start_from_hippo(modes, d_model)

    @torch.no_grad()
    def _start_from_hippo(self, modes: int, d_model: int) -> None:
        """Blocks of HiPPO-N of up to 64 states, as equal as can be, with B and C drawn in their
        real bases.
        """
        num_blocks = -(-modes // LARGEST_BLOCK)
        sizes = [modes // num_blocks + (i < modes % num_blocks) for i in range(num_blocks)]
        blocks = [dplr(2 * size) for size in sizes]
        poles_P = torch.cat([block.poles_M for block in blocks])
        self.log_decay.copy_(torch.log(-poles_P.real))
        self.frequency.copy_(poles_P.imag)
        inputs, outputs = [], []
        for block in blocks:
            basis_NM = block.basis_NM.to(torch.complex64)
            b0_ND = torch.randn(basis_NM.shape[0], d_model) * d_model**-0.5
            c0_DN = torch.randn(d_model, basis_NM.shape[0]) * (2 * modes) ** -0.5
            inputs.append(basis_NM.conj().T @ b0_ND.to(basis_NM.dtype))
            outputs.append(2 * c0_DN.to(basis_NM.dtype) @ basis_NM)
        b_PD, c_DP = torch.cat(inputs), torch.cat(outputs, 1)
        self.b.weight.copy_(torch.cat([b_PD.real, b_PD.imag]))
        self.c.weight.copy_(torch.cat([c_DP.real, -c_DP.imag], 1))

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        (ar, ai), (br, bi) = self._recurrence(x_BTD)
        valid_BT = span.valid_BT
        if valid_BT is not None:
            real_BT1 = valid_BT[..., None]
            ar, ai = torch.where(real_BT1, ar, 1.0), torch.where(real_BT1, ai, 0.0)
            br, bi = torch.where(real_BT1, br, 0.0), torch.where(real_BT1, bi, 0.0)
        start = None
        if state is not None:
            start = (state["re"].to(br.dtype), state["im"].to(br.dtype))
        re_BTP, im_BTP = scan_pair((ar, ai), (br, bi), start)
        if state is not None:
            state["re"].copy_(re_BTP[:, -1])
            state["im"].copy_(im_BTP[:, -1])
        return {"x": torch.cat([re_BTP, im_BTP], -1).to(x_BTD.dtype)}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        return self._read(x_BTD, shared)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        (ar, ai), (br, bi) = self._recurrence(x_BD)
        re, im = state["re"], state["im"]
        re_BP, im_BP = ar * re - ai * im + br, ar * im + ai * re + bi
        re.copy_(re_BP)
        im.copy_(im_BP)
        return {"x": torch.cat([re_BP, im_BP], -1).to(x_BD.dtype)}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        return self._read(x_BD, shared)

    def _read(self, x: Tensor, shared: Features) -> Tensor:
        y = F.gelu(self.c(shared["x"]) + self.d * x)
        return y * self.gate(y).sigmoid()

    def _recurrence(self, x: Tensor) -> tuple[Pair, Pair]:
        """Decay, one a mode, and input of each token."""
        decay = -precise(self.log_decay).exp()
        a, (fr, fi) = zoh(decay, precise(self.frequency), precise(self.log_dt).exp())
        ur, ui = precise(self.b(x)).chunk(2, -1)
        return a, (fr * ur - fi * ui, fr * ui + fi * ur)
