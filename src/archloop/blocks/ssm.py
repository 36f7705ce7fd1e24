"""State spaces that act on each channel alone, and the block that mixes channels after them.

What `s4`, `s4d`, `liquid_s4` and `rtf` share: ``y = GELU(core(u) + D u)``, then a gated linear
layer, as in the authors' code of S4 (arXiv 2111.00396). A subclass says what the core is.

Shape suffixes: B batch, T time, D model width.
"""

from abc import abstractmethod
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops.long_conv import System, chunk_size, state_space
from archloop.blocks.ops.precision import KeepsFloat32, exact, precise


class ChannelSSMSizes(TypedDict):
    """What tells two channels' states apart, at every width."""

    num_states: int


class ChannelSSMConfig(MixerConfig):
    """Costs around the core. `num_states` of a subclass is the real states of one channel."""

    @property
    @abstractmethod
    def num_states(self) -> int:
        """Real values of state per channel."""

    @abstractmethod
    def core_terms(self, d_model: int) -> dict[str, int]:
        """Parameters of the core by part, without D."""

    @abstractmethod
    def core_flops(self, d_model: int, num_tokens: int) -> int:
        """FLOPs of the core in parallel form, without D."""

    @abstractmethod
    def core_step_flops(self, d_model: int) -> int:
        """FLOPs of the core's step, without D."""

    def sizes(self, d_model: int) -> ChannelSSMSizes:
        return {"num_states": self.num_states}

    def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
        terms = {"skip": d_model, "out_proj": d_model * 2 * d_model}
        return terms | self.core_terms(d_model)

    def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
        return {"x": Held("recurrent", (d_model, self.num_states))}

    def flop_terms(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        around = self._around(d_model, num_tokens, consumer)
        return around | {"core": self.core_flops(d_model, num_tokens)}

    def step_flop_terms(
        self, d_model: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        return self._around(d_model, 1, consumer) | {"core": self.core_step_flops(d_model)}

    def _around(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
        params = self.param_terms(d_model, consumer=consumer)
        return matrix_flops(params, ("skip", "out_proj"), num_tokens)


class ChannelSSM(KeepsFloat32, SequenceMixer):
    """Per-channel state space, D skip, GELU, gated linear layer."""

    def __init__(self, config: ChannelSSMConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.num_states = config.num_states
        self.skip = nn.Parameter(torch.randn(d_model))
        self.out_proj = Linear(d_model, 2 * d_model)

    @abstractmethod
    def core(self, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        """The state spaces in parallel form; inputs and outputs in at least float32."""

    @abstractmethod
    def core_step(self, u_BD: Tensor, state: State) -> Tensor:
        """One token of the state spaces."""

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        with exact(x_BTD):
            y_BTD = self.core(precise(x_BTD), state, span)
        return self._out(x_BTD, y_BTD.to(x_BTD.dtype))

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        with exact(x_BD):
            y_BD = self.core_step(precise(x_BD), state)
        return self._out(x_BD, y_BD.to(x_BD.dtype))

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        value, gate = self.out_proj(F.gelu(y + self.skip * x)).chunk(2, -1)
        return value * gate.sigmoid()


def run_system(system: System, u_BTD: Tensor, state: State | None, span: Span) -> Tensor:
    """`state_space` on a mixer's state, advancing it in place."""
    start = None if state is None else state["x"].to(u_BTD.dtype)
    y_BTD, last_BDS = state_space(system, u_BTD, start, span.lengths_B)
    if state is not None and last_BDS is not None:
        state["x"].copy_(last_BDS)
    return y_BTD


def chunked_flops(num_tokens: int, num_states: int) -> int:
    """Matrix products of one channel's chunks, without making their matrices."""
    size = chunk_size(num_tokens)
    padded = -(-num_tokens // size) * size
    return 2 * padded * (size + 2 * num_states)


def dense_chunk_flops(num_tokens: int, num_states: int) -> int:
    """Products that make one channel's chunk matrices from a dense A, and carry its state."""
    size = chunk_size(num_tokens)
    squarings = 2 * num_states**3 * (size.bit_length() - 1)
    carried = 2 * num_states**2 * (-(-num_tokens // size))
    return squarings + carried + 4 * num_states**2 * size + 2 * num_states * size
