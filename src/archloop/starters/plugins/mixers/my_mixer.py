"""A leaky average: the least that a sequence mixer can be, to begin one's own from.

``u = W_in x``; ``h_t = a h_{t-1} + (1 - a) u_t`` for each channel; ``y = W_out(silu(W_g x) * h)``.
The decay a lies between 0 and 1 by how it is parametrised, so that no training makes it unstable.

The file's name is the mixer's name in recipes. What holds for every mixer (causality, steps equal
to the parallel form, padding, costs that are counted rightly) is tested by the contract kit:
``pytest test_my_mixer.py``. `archloop plugins --plugins plugins mixers` shows it beside the others.

Shape suffixes: B batch, T time, D model width.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Gene, Held, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.linear import Linear
from archloop.blocks.ops.precision import recurrent_dtype
from archloop.blocks.ops.scan import scan


class MyMixer(SequenceMixer):
    """A gated leaky average of each channel; 3 d^2 + d parameters, d values of state."""

    no_decay = frozenset({"decay_logit"})

    class Config(MixerConfig):
        """One gene: how long the slowest channel remembers when training begins."""

        memory: Annotated[int, Gene((16, 64, 256))] = Field(64, ge=2, le=2**16)
        """Tokens over which the slowest channel averages at first."""

        def sizes(self, d_model: int) -> dict[str, int]:
            """Sizes that follow from the width; raise UserError for a width that cannot be."""
            return {"d_model": d_model}

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            """Parameters by the part's name; tested against the module."""
            square = d_model * d_model
            return {
                "in_proj": square,
                "gate_proj": square,
                "decay_logit": d_model,
                "out_proj": square,
            }

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            """What is carried between tokens, for one sequence: here nothing grows with context."""
            return {"average": Held("recurrent", (d_model,))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            """FLOPs of a pass by the part's name, one multiply-accumulate being two."""
            each = 2 * num_tokens * d_model * d_model
            mixing = 6 * num_tokens * d_model
            return {"in_proj": each, "gate_proj": each, "mixing": mixing, "out_proj": each}

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        self.in_proj = Linear(d_model, d_model)
        self.gate_proj = Linear(d_model, d_model)
        self.out_proj = Linear(d_model, d_model)
        # From channels that forget within two tokens to one that averages over `memory` of them.
        memory_D = torch.logspace(0.3, torch.tensor(float(config.memory)).log10().item(), d_model)
        self.decay_logit = nn.Parameter(torch.logit(1 - 1 / memory_D))

    def mix(self, x_BTD: Tensor, state: State | None, span: Span) -> Tensor:
        """All tokens at once, from a state (None: from nothing), which is advanced in place."""
        u_BTD, decay_BTD = self._inputs(self.in_proj(x_BTD))
        if (valid_BT := span.valid_BT) is not None:
            # Padding leaves the average as it is.
            u_BTD = u_BTD.where(valid_BT[..., None], 0)
            decay_BTD = torch.where(valid_BT[..., None], decay_BTD, 1.0)
        h_BTD = scan(decay_BTD, u_BTD, None if state is None else state["average"])
        if state is not None:
            state["average"].copy_(h_BTD[:, -1])
        return self.out_proj(F.silu(self.gate_proj(x_BTD)) * h_BTD.to(x_BTD.dtype))

    def mix_step(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Tensor:
        """One token of each row."""
        u_BD, decay_D = self._inputs(self.in_proj(x_BD))
        state["average"].copy_(torch.addcmul(u_BD, decay_D, state["average"]))
        return self.out_proj(F.silu(self.gate_proj(x_BD)) * state["average"].to(x_BD.dtype))

    def _inputs(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the average, and what is left of it, in the precision of the state."""
        dtype = recurrent_dtype(u.dtype)
        decay_D = torch.sigmoid(self.decay_logit.to(dtype))
        return u.to(dtype) * (1 - decay_D), decay_D
