"""Mixers whose state is a matrix per head with a decay per key channel: what `gla`, `hgrn2` share.

A subclass says how keys, values, log-decays and queries come from the input, and what happens to
the output; state, padding, both forms and sharing are settled here (`ops.linear_attention`).

Shape suffixes: B batch, T time, D model width, N heads, K key width, V value width, n chunks.
"""

from abc import abstractmethod
from typing import TypedDict

from torch import Tensor

from archloop.blocks.base import Features, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.linear import Linear
from archloop.blocks.ops import linear_attention, triton_kernels
from archloop.blocks.ops.heads import join_heads, split_heads
from archloop.blocks.span import only_real


class LinearAttentionSizes(TypedDict):
    """What follows from the model width; `head_dim` is that of values."""

    num_heads: int
    head_dim: int
    key_dim: int


class LinearAttentionConfig(MixerConfig):
    """State and FLOPs of gated linear attention between a subclass's projections."""

    @abstractmethod
    def sizes(self, d_model: int) -> LinearAttentionSizes: ...

    def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
        return {"kv": Held("recurrent", self._heads(d_model))}

    def flop_terms(
        self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        heads, *widths = self._heads(d_model)
        terms = self._matrices(d_model, num_tokens, consumer)
        terms["read"] = heads * linear_attention.read_flops(num_tokens, *widths)
        if not consumer:
            terms["states"] = heads * linear_attention.states_flops(num_tokens, *widths)
        return terms

    def step_flop_terms(
        self, d_model: int, context: int, *, consumer: bool = False
    ) -> dict[str, int]:
        heads, *widths = self._heads(d_model)
        step = heads * linear_attention.step_flops(*widths, consumer=consumer)
        return self._matrices(d_model, 1, consumer) | {"step": step}

    def _matrices(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
        """FLOPs of the projections."""
        params = self.param_terms(d_model, consumer=consumer)
        return matrix_flops(params, ("query_proj", "feature_proj", "out_proj"), num_tokens)

    def _heads(self, d_model: int) -> tuple[int, int, int]:
        sizes = self.sizes(d_model)
        return sizes["num_heads"], sizes["key_dim"], sizes["head_dim"]


class LinearAttention(SharingMixer):
    """Gated linear attention between a subclass's projections; N K V values of state."""

    out_proj: Linear

    def __init__(self, config: LinearAttentionConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        self.num_heads, self.key_dim = sizes["num_heads"], sizes["key_dim"]
        self.head_dim = sizes["head_dim"]

    @abstractmethod
    def keys(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (..., N K), values (..., N V), log-decays (..., N K) in at least float32."""

    @abstractmethod
    def queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scaled queries (..., N K), and the gate on the output (..., N V), if any."""

    @abstractmethod
    def output(self, o: Tensor, gate: Tensor | None) -> Tensor:
        """What becomes of the heads' outputs, (..., N V)."""

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        k, v, g = (split_heads(part, self.num_heads) for part in self.keys(x_BTD))
        k, g = only_real(k, span), only_real(g, span)
        if state is None and triton_kernels.taken_from_fla(v, self.key_dim):
            return {"k": k, "v": v, "g": g}
        initial = None if state is None else state["kv"].to(g.dtype)
        states_BNnKV, final_BNKV = linear_attention.states(k, v, g, initial)
        if state is not None:
            state["kv"].copy_(final_BNKV)
        return {"k": k, "v": v, "g": g, "states": states_BNnKV}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BTd, gate = self.queries(x_BTD)
        q_BNTK = split_heads(q_BTd, self.num_heads)
        parts = q_BNTK, shared["k"], shared["v"], shared["g"]
        if "states" in shared:
            o_BNTV = linear_attention.read(*parts, shared["states"])
        else:
            from archloop.blocks.ops.gpu import fla

            o_BNTV = fla.gla(*parts)
        return self.output(join_heads(o_BNTV).to(q_BTd.dtype), gate)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        k, v, g = (part.unflatten(-1, (self.num_heads, -1)) for part in self.keys(x_BD))
        state["kv"].copy_(linear_attention.advance(state["kv"], k, v, g))
        return {"kv": state["kv"]}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        q_Bd, gate = self.queries(x_BD)
        q_BNK = q_Bd.unflatten(-1, (self.num_heads, -1))
        o_BNV = linear_attention.query(shared["kv"], q_BNK)
        return self.output(o_BNV.flatten(1).to(q_Bd.dtype), gate)
