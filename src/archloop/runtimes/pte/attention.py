"""Attention over caches by ExecuTorch's own operators, which write and read a cache in place.

A portable graph would copy the whole cache to write one token into it, and compare every slot with
every position. ``llama::update_cache`` writes into the cache itself, and ``llama::custom_sdpa``
reads the slots up to the query's own position alone. Both want the cache's slots before its heads,
so the state of these mixers is held that way round.

Shape suffixes: B batch (1), T new tokens, S slots, D model width, N query heads, M KV heads,
H head width, K width of an absorbed query: latent and shared key, R latent width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from archloop.blocks.attention import Attention
from archloop.blocks.base import Features, SequenceMixer, Span, State
from archloop.blocks.linear import Linear
from archloop.blocks.mixers.gqa import GQA
from archloop.blocks.mixers.mla import MLA
from archloop.blocks.mixers.swa import SWA

CACHES = {"gqa": ("k", "v"), "mla": ("latent",)}
"""Tensors of a mixer's state that are caches of shape (B, S, M, H) here."""


def load_operators() -> None:
    """Make the operators known to PyTorch, for tracing, and to the engine, for running."""
    from executorch.extension.llm.custom_ops import custom_ops

    del custom_ops


def fuse(mixer: SequenceMixer) -> None:
    """Let a mixer with a cache use the operators; others are left as they are.

    Its numbers stay; how it reads and writes its state is another class's, and projections that
    are rows of one matrix become matrices of their own, which can be quantised.
    """
    if type(mixer) in _SPLIT:
        mixer.__class__ = _SPLIT[type(mixer)]
        assert isinstance(mixer, _SplitAttention)
        mixer.split()
    elif type(mixer) is MLA:
        mixer.__class__ = FusedMLA


class _SplitAttention(Attention):
    """Attention with a projection for queries and one for keys and values."""

    def split(self) -> None:
        """Make them of the rows of the one projection."""
        width = self.num_heads * self.head_dim
        weight = self.qkv_proj.weight
        self.q_proj = _linear(weight[:width])
        if weight.shape[0] > width:
            self.kv_proj = _linear(weight[width:])
        del self.qkv_proj

    def queries(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        return self._placed(self.q_proj(x_BTD), self.num_heads, self.q_norm, positions_BT)

    def keys_values(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        assert self.k_norm is not None, "a consumer has no keys of its own"
        k_BTd, v_BTd = self.kv_proj(x_BTD).chunk(2, -1)
        return self._placed(k_BTd, self.num_kv_heads, self.k_norm, positions_BT), self._heads(v_BTd)


class SplitSWA(_SplitAttention, SWA):
    """Windowed attention, whose ring needs none of the operators."""


class FusedGQA(_SplitAttention, GQA):
    """Grouped-query attention whose cache is (B, S, M, H)."""

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        assert state is not None, "a graph of inference has a state"
        k_BMTH, v_BMTH = self.keys_values(x_BTD, span.positions_BT)
        first = _first(span, state["k"])
        _write(state["k"], k_BMTH.transpose(1, 2), first)
        _write(state["v"], v_BMTH.transpose(1, 2), first)
        return {"k": state["k"], "v": state["v"], "first": first}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BNTH = self.queries(x_BTD, span.positions_BT)
        y_BTNH = _attend(
            q_BNTH.transpose(1, 2), shared["k"], shared["v"], shared["first"], self.scale
        )
        return self.join(x_BTD, y_BTNH.transpose(1, 2))

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        return self.features(x_BD[:, None], state, Span(positions_B[:, None]))

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        return self.read(x_BD[:, None], shared, Span(positions_B[:, None]))[:, 0]


class FusedMLA(MLA):
    """Latent attention in its absorbed form: all heads read one cache (B, S, 1, K) of latents.

    Keys and values are the same slots, since the operator wants them equally wide; the part of an
    output that comes from shared keys is dropped.
    """

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        assert state is not None, "a graph of inference has a state"
        first = _first(span, state["latent"])
        _write(state["latent"], self._latents(x_BTD)[:, :, None], first)
        return {"latent": state["latent"], "first": first}

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        batch, time = x_BTD.shape[:2]
        width = self.num_heads, self.head_dim
        q_BTNk = self.query_proj(x_BTD).reshape(batch, time, self.num_heads, self.key_dim)
        q_BTNH, q_BTNP = q_BTNk.split([self.head_dim, self.shared_key_dim], -1)
        keys_NHR, values_NHR = self.up_proj.weight.reshape(2, *width, self.latent_dim)
        q_NTH = q_BTNH[0].transpose(0, 1)
        q_BTNR = torch.bmm(q_NTH, keys_NHR).transpose(0, 1)[None]
        q_BTNK = torch.cat([q_BTNR, q_BTNP], -1)
        cache = shared["latent"]
        y_BTNK = _attend(q_BTNK, cache, cache, shared["first"], self.key_dim**-0.5)
        y_NTR = y_BTNK[0, :, :, : self.latent_dim].transpose(0, 1)
        y_NTH = torch.bmm(y_NTR, values_NHR.transpose(1, 2))
        return self.out_proj(y_NTH.transpose(0, 1).reshape(batch, time, -1))

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        return self.features(x_BD[:, None], state, Span(positions_B[:, None]))

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        return self.read(x_BD[:, None], shared, Span(positions_B[:, None]))[:, 0]


def _linear(weight: Tensor) -> Linear:
    """A projection with a copy of some rows."""
    made = Linear(weight.shape[1], weight.shape[0])
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return made


def _first(span: Span, cache_BSMH: Tensor) -> Any:
    """The first token's position, as the number that the operators take."""
    first = span.positions_BT[0, 0].item()
    torch._check(first >= 0)
    torch._check(first + span.positions_BT.shape[1] <= cache_BSMH.shape[1])
    return first


def _write(cache_BSMH: Tensor, new_BTMH: Tensor, first: Any) -> None:
    """Put tokens into their slots, padding too: the cache has a pass more slots than tokens."""
    torch.ops.llama.update_cache(new_BTMH.contiguous(), cache_BSMH, first)


def _attend(q_BTNH: Tensor, k_BSMH: Tensor, v_BSMH: Tensor, first: Any, scale: float) -> Tensor:
    """Causal attention of the new tokens over all slots up to their own."""
    y_BTNH: Tensor = torch.ops.llama.custom_sdpa(
        q_BTNH.contiguous(), k_BSMH, v_BSMH, first, None, 0.0, True, scale
    )
    return y_BTNH


_SPLIT: dict[type[SequenceMixer], type[SequenceMixer]] = {GQA: FusedGQA, SWA: SplitSWA}
