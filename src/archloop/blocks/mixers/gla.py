"""Gated linear attention (arXiv 2312.06635): a matrix state whose every key channel forgets.

``g_t = logsigmoid(W_2 W_1 x_t + b) / 16``; ``S_t = diag(exp g_t) S_{t-1} + k_t v_t^T``;
``o_t = dk^-1/2 S_t^T q_t``; ``y_t = W_o(RMSNorm(o_t) * silu(W_g x_t))``, the norm per head.

Shape suffixes: B batch, T time, D model width, N heads, K key width, V value width, n chunks.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, MixerConfig, SequenceMixer, Span, State
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops import linear_attention
from archloop.blocks.ops.heads import join_heads, only_real, recurrent_dtype, split_heads


class GLA(SequenceMixer):
    """Gated linear attention; N K V values of state in at least float32."""

    shareable = True

    class Config(MixerConfig):
        """The paper has four heads at every width; a fixed head width keeps the gene absolute."""

        head_dim: Annotated[int, Gene((64, 128, 256))] = Field(64, ge=2, multiple_of=2)
        key_ratio: Annotated[float, Gene((0.5, 1.0), scale="ratio")] = Field(0.5, gt=0, le=4)
        gate_rank: int = Field(16, ge=1)
        gate_divisor: float = Field(16.0, gt=0)
        norm_eps: float = Field(1e-5, gt=0)

        def sizes(self, d_model: int) -> dict[str, int]:  # noqa: D102
            if d_model % self.head_dim:
                raise ValueError(
                    f"head_dim={self.head_dim} does not divide d_model={d_model}; choose a divisor"
                )
            key_dim = round(self.head_dim * self.key_ratio)
            if key_dim != self.head_dim * self.key_ratio:
                raise ValueError(
                    f"key_ratio={self.key_ratio} times head_dim={self.head_dim} is not whole; "
                    "allowed: multiples of 1/head_dim"
                )
            heads = d_model // self.head_dim
            return {"num_heads": heads, "head_dim": self.head_dim, "key_dim": key_dim}

        def num_params(self, d_model: int, *, consumer: bool = False) -> int:  # noqa: D102
            _, keys = self._widths(d_model)
            own = d_model * (keys + 2 * d_model) + self.head_dim
            gates = d_model * self.gate_rank + (self.gate_rank + 1) * keys
            return own + (0 if consumer else d_model * (keys + d_model) + gates)

        def state_bytes(self, d_model: int, context: int, dtype: torch.dtype) -> int:  # noqa: D102
            itemsize = recurrent_dtype(dtype).itemsize
            return self._widths(d_model)[1] * self.head_dim * itemsize

        def prefill_flops(  # noqa: D102
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> int:
            heads, keys = self._widths(d_model)
            widths = keys // heads, self.head_dim
            mixing = linear_attention.read_flops(num_tokens, *widths)
            if not consumer:
                mixing += linear_attention.states_flops(num_tokens, *widths)
            return num_tokens * self._projection_flops(d_model, consumer) + heads * mixing

        def decode_flops(  # noqa: D102
            self, d_model: int, context: int, *, consumer: bool = False
        ) -> int:
            heads, keys = self._widths(d_model)
            widths = keys // heads, self.head_dim
            mixing = linear_attention.step_flops(*widths, consumer=consumer)
            return self._projection_flops(d_model, consumer) + heads * mixing

        def _widths(self, d_model: int) -> tuple[int, int]:
            sizes = self.sizes(d_model)
            return sizes["num_heads"], sizes["num_heads"] * sizes["key_dim"]

        def _projection_flops(self, d_model: int, consumer: bool) -> int:
            _, keys = self._widths(d_model)
            own = 2 * d_model * (keys + 2 * d_model)
            gates = 2 * self.gate_rank * (d_model + keys)
            return own + (0 if consumer else 2 * d_model * (keys + d_model) + gates)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__()
        sizes = config.sizes(d_model)
        self.num_heads, self.key_dim = sizes["num_heads"], sizes["key_dim"]
        self.head_dim, self.gate_divisor = config.head_dim, config.gate_divisor
        keys = self.num_heads * self.key_dim
        self.query_widths = [keys, d_model]
        self.feature_widths = [keys, d_model, config.gate_rank]
        self.query_proj = Linear(d_model, sum(self.query_widths))
        self.norm = RMSNorm(self.head_dim, config.norm_eps)
        self.out_proj = Linear(d_model, d_model)
        if not consumer:
            self.feature_proj = Linear(d_model, sum(self.feature_widths))
            self.gate_proj = Linear(config.gate_rank, keys, bias=True)

    def init_state(  # noqa: D102
        self,
        batch_size: int,
        max_context: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        like = self.out_proj.weight
        kv_BNKV = torch.zeros(
            (batch_size, self.num_heads, self.key_dim, self.head_dim),
            dtype=recurrent_dtype(dtype or like.dtype),
            device=device or like.device,
        )
        return State(max_context, kv=kv_BNKV)

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:  # noqa: D102
        k, v, g = (split_heads(part, self.num_heads) for part in self._keys(x_BTD))
        k, g = only_real(k, span), only_real(g, span)
        initial = None if state is None else state["kv"]
        states_BNnKV, final_BNKV = linear_attention.states(k, v, g, initial)
        if state is not None:
            state["kv"].copy_(final_BNKV)
        return {"k": k, "v": v, "g": g, "states": states_BNnKV}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:  # noqa: D102
        q_BTd, gate_BTD = self._queries(x_BTD)
        q_BNTK = split_heads(q_BTd, self.num_heads)
        o_BNTV = linear_attention.read(
            q_BNTK, shared["k"], shared["v"], shared["g"], shared["states"]
        )
        return self._out(join_heads(o_BNTV), gate_BTD)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:  # noqa: D102
        k, v, g = (part.unflatten(-1, (self.num_heads, -1)) for part in self._keys(x_BD))
        state["kv"].copy_(linear_attention.advance(state["kv"], k, v, g))
        return {"kv": state["kv"]}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:  # noqa: D102
        q_Bd, gate_BD = self._queries(x_BD)
        q_BNK = q_Bd.unflatten(-1, (self.num_heads, -1))
        return self._out(linear_attention.query(shared["kv"], q_BNK).flatten(1), gate_BD)

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, gate = self.query_proj(x).split(self.query_widths, -1)
        return q * self.key_dim**-0.5, gate

    def _keys(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and log-decays, heads side by side."""
        k, v, low = self.feature_proj(x).split(self.feature_widths, -1)
        logits = self.gate_proj(low)
        g = F.logsigmoid(logits.to(recurrent_dtype(logits.dtype))) / self.gate_divisor
        return k, v, g

    def _out(self, o: Tensor, gate: Tensor) -> Tensor:
        o = self.norm(o.to(gate.dtype).unflatten(-1, (self.num_heads, -1))).flatten(-2)
        return self.out_proj(o * F.silu(gate))
