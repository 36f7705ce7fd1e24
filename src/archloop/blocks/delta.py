"""Mixers that write by the gated delta rule: what `gated_deltanet` and `kda` share.

``q, k, v = silu(conv_4(W x))``, q and k normalised to length 1; state and outputs as in
`ops.delta_rule`; then a norm per head, a gate and the output projection. A subclass says how
decays, write strengths and the output gate come from the input.

A block that shares this one's state runs its own q (without convolution, which would need a state)
and gate. ``core="conv"`` keeps everything but the recurrence: the heads' outputs are v.

Shape suffixes: B batch, T time, D model width, N value heads, K key width, V value width, L past
inputs of the convolution.
"""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, Self, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops import delta_rule, linear_attention, ssd, triton_kernels
from archloop.blocks.ops.conv import advance_past, causal_conv, causal_conv_step
from archloop.blocks.ops.gated_norm import Activation, gated_norm
from archloop.blocks.ops.heads import join_heads, split_heads
from archloop.blocks.ops.precision import KeepsFloat32
from archloop.blocks.ops.unit_conv import unit, unit_conv
from archloop.blocks.span import only_real
from archloop.blocks.widths import count_heads, scaled_heads


class DeltaSizes(TypedDict):
    """What follows from the model width; `num_heads` are those of values."""

    num_heads: int
    head_dim: int
    kernel: int


class DeltaConfig(MixerConfig):
    """Key heads follow from the width, ``d_model / head_dim``, unless given.

    Each serves as many value heads as a subclass says.
    """

    through_sizes = frozenset({"num_key_heads"})
    head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=2)
    num_key_heads: int | None = Field(None, ge=1)
    kernel: int = Field(4, ge=1, le=64)
    core: Literal["recurrent", "conv"] = "recurrent"
    negative_eigenvalues: bool = False
    """Write strengths up to 2, so that a state can be reflected as well as erased."""
    norm_eps: float = Field(1e-6, gt=0)
    _VECTORS: ClassVar = frozenset({"norm", "log_rate", "dt_bias"})

    def sizes(self, d_model: int) -> DeltaSizes:
        keys = self.num_key_heads or count_heads(d_model, self.head_dim, f"d_model={d_model}")
        heads = keys * self._values_per_key()
        return {"num_heads": heads, "head_dim": self.head_dim, "kernel": self.kernel}

    def at_width(self, d_model: int, new: int) -> Self:
        keys = self.sizes(d_model)["num_heads"] // self._values_per_key()
        return self.model_copy(update={"num_key_heads": scaled_heads(keys, d_model, new)})

    def reach(self, d_model: int) -> int | None:
        return self.kernel - 1 if self.core == "conv" else None

    def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
        keys, values = self.widths(d_model)
        terms = {"norm": self.head_dim, "out_proj": values * d_model}
        terms |= self._output_gate_terms(d_model)
        if consumer:
            return terms | ({} if self.core == "conv" else {"query_proj": d_model * keys})
        convolved = self._convolved(d_model)
        terms |= {"conv_proj": d_model * convolved, "conv": convolved * self.kernel}
        return terms | ({} if self.core == "conv" else self._gate_terms(d_model))

    def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
        layout = {"conv": Held("recent", (self.kernel - 1, self._convolved(d_model)))}
        if self.core == "recurrent":
            heads = self.sizes(d_model)["num_heads"]
            layout["kv"] = Held("recurrent", (heads, self.head_dim, self.head_dim))
        return layout

    def flop_terms(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        terms = self._token_terms(d_model, num_tokens, consumer)
        if self.core == "conv":
            return terms
        heads, widths = self.sizes(d_model)["num_heads"], (self.head_dim, self.head_dim)
        vector, shared = self._vector(), self._values_per_key()
        read = delta_rule.read_flops(num_tokens, *widths, shared, vector=vector)
        terms["read"] = heads // shared * read
        if not consumer:
            corrected = delta_rule.corrected_flops(num_tokens, *widths, vector=vector)
            terms["corrected"] = heads * corrected
        return terms

    def step_flop_terms(
        self, d_model: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        terms = self._token_terms(d_model, 1, consumer)
        if self.core == "conv":
            return terms
        heads, widths = self.sizes(d_model)["num_heads"], (self.head_dim, self.head_dim)
        terms["query"] = heads * linear_attention.step_flops(*widths, consumer=True)
        if not consumer:
            terms["advance"] = heads * delta_rule.advance_flops(*widths)
        return terms

    @abstractmethod
    def _values_per_key(self) -> int: ...

    @abstractmethod
    def _vector(self) -> bool:
        """Whether each key channel has a decay of its own."""

    @abstractmethod
    def _gate_terms(self, d_model: int) -> dict[str, int]:
        """Parameters of decays and write strengths, by part."""

    @abstractmethod
    def _output_gate_terms(self, d_model: int) -> dict[str, int]:
        """Parameters of the gate on the heads' outputs, by part."""

    def widths(self, d_model: int) -> tuple[int, int]:
        """Keys and values of all heads."""
        values = self.sizes(d_model)["num_heads"] * self.head_dim
        return values // self._values_per_key(), values

    def _convolved(self, d_model: int) -> int:
        keys, values = self.widths(d_model)
        return values if self.core == "conv" else 2 * keys + values

    def _token_terms(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
        """FLOPs of what meets each token once: the projections and the convolution."""
        params = self.param_terms(d_model, consumer=consumer)
        return matrix_flops(params, params.keys() - self._VECTORS, num_tokens)


class DeltaMixer(KeepsFloat32, SharingMixer):
    """Gated delta rule between a subclass's gates; N K V values of state, and the convolution's."""

    float32_params = frozenset({"log_rate", "dt_bias"})
    gate_activation: ClassVar[Activation]

    def __init__(self, config: DeltaConfig, d_model: int, consumer: bool) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        self.head_dim, self.num_heads = config.head_dim, sizes["num_heads"]
        keys, values = config.widths(d_model)
        self.num_key_heads = keys // config.head_dim
        self.recurrent, self.consumer = config.core == "recurrent", consumer
        self.max_beta = 2.0 if config.negative_eigenvalues else 1.0
        self.norm = RMSNorm(config.head_dim, config.norm_eps)
        self.out_proj = Linear(values, d_model)
        # Only a consumer has a projection of its own for queries. A block with a state takes its
        # queries from the convolved projection, together with keys and values.
        asks = consumer and self.recurrent
        self.query_proj = Linear(d_model, keys) if asks else None
        if consumer:
            return
        self.conv_widths = [keys, keys, values] if self.recurrent else [0, 0, values]
        self.conv_proj = Linear(d_model, sum(self.conv_widths))
        bound = config.kernel**-0.5
        weight_dK = torch.empty(sum(self.conv_widths), config.kernel).uniform_(-bound, bound)
        self.conv = nn.Parameter(weight_dK)

    @abstractmethod
    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-decays (..., N K or N), at least float32, and write strengths (..., N) before 2x."""

    @abstractmethod
    def output_gate(self, x: Tensor) -> Tensor:
        """What passes through `gate_activation` and multiplies the normed outputs, (..., N V)."""

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        into_conv_BTd = self.conv_proj(x_BTD)
        past_BLd = None if state is None else state["conv"]
        if self.recurrent:
            q_BGTK, k_BGTK, v_BNTV = unit_conv(
                into_conv_BTd, self.conv, past_BLd, self.num_key_heads, self.head_dim
            )
        else:
            v_BTd = F.silu(causal_conv(into_conv_BTd, self.conv, past_BLd))
        if past_BLd is not None:
            advance_past(past_BLd, into_conv_BTd, span.lengths_B)
        if not self.recurrent:
            return {"v": v_BTd}
        g, beta = (split_heads(gate, self.num_heads) for gate in self.gates(x_BTD))
        g, beta_BNT = only_real(g, span), only_real(self.max_beta * beta, span)[..., 0]
        vector = g.shape[-1] > 1
        if state is None and vector and triton_kernels.taken_from_fla(v_BNTV, self.head_dim):
            return {"q": q_BGTK, "k": k_BGTK, "v": v_BNTV, "beta": beta_BNT, "g": g}
        initial = None if state is None else state["kv"].to(g.dtype)
        v_BNTV, states_BNnKV, final_BNKV = delta_rule.corrected(
            k_BGTK, v_BNTV, beta_BNT, g, initial
        )
        if state is not None:
            state["kv"].copy_(final_BNKV)
        return {"q": q_BGTK, "k": k_BGTK, "v": v_BNTV, "g": g, "states": states_BNnKV}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        if not self.recurrent:
            return self._out(x_BTD, shared["v"])
        q = shared["q"]
        if self.query_proj is not None:
            q = unit(split_heads(F.silu(self.query_proj(x_BTD)), self.num_key_heads))
            q = q * self.head_dim**-0.5
        if "states" in shared:
            o_BNTV = delta_rule.read(q, shared["k"], shared["v"], shared["g"], shared["states"])
        else:
            from archloop.blocks.ops.gpu import fla

            o_BNTV = fla.kda(q, shared["k"], shared["v"], shared["beta"], shared["g"])
        return self._out(x_BTD, join_heads(o_BNTV))

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        into_conv_Bd = self.conv_proj(x_BD)
        convolved_Bd = F.silu(causal_conv_step(into_conv_Bd, self.conv, state["conv"]))
        advance_past(state["conv"], into_conv_Bd[:, None])
        q, k, v = convolved_Bd.split(self.conv_widths, -1)
        if not self.recurrent:
            return {"v": v}
        g, beta_BN = self.gates(x_BD)
        g_BNK, v_BNV = (part.unflatten(-1, (self.num_heads, -1)) for part in (g, v))
        k_BNK, q_BNK = self._unit_heads(k), self._unit_heads(q) * self.head_dim**-0.5
        beta_BN = self.max_beta * beta_BN
        state["kv"].copy_(delta_rule.advance(state["kv"], k_BNK, v_BNV, beta_BN, g_BNK))
        return {"kv": state["kv"], "q": q_BNK}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        if not self.recurrent:
            return self._out(x_BD, shared["v"])
        q = shared["q"]
        if self.query_proj is not None:
            q = self._unit_heads(F.silu(self.query_proj(x_BD))) * self.head_dim**-0.5
        o_BNV = linear_attention.query(shared["kv"], q)
        return self._out(x_BD, o_BNV.flatten(1))

    def _unit_heads(self, x_Bd: Tensor) -> Tensor:
        """One token's vectors of length 1 of each key head, for each value head (B, N, K)."""
        unit_BGK = unit(x_Bd.unflatten(-1, (self.num_key_heads, -1)))
        return ssd.to_heads(unit_BGK, self.num_heads)

    def _out(self, x: Tensor, o: Tensor) -> Tensor:
        heads = o.to(x.dtype).unflatten(-1, (self.num_heads, -1))
        gate = self.output_gate(x).unflatten(-1, (self.num_heads, -1))
        gated = gated_norm(heads, self.norm.weight, self.norm.eps, gate, self.gate_activation)
        return self.out_proj(gated.flatten(-2))
