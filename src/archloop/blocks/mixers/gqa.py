"""Grouped-query attention over the whole context, with QK-norm and RoPE.

GQA: arXiv 2305.13245; QK-norm: arXiv 2302.05442. A token's KV slot is its position, so every slot
up to a query's own position is filled and nothing else needs to be remembered.

Shape suffixes: as in `blocks.attention`.
"""

import torch
from torch import Tensor

from archloop.blocks.attention import Attention, AttentionConfig
from archloop.blocks.base import Features, Held, Span, State
from archloop.blocks.fast import CachedAttention
from archloop.blocks.kv_cache import causal_mask, held_before, write_slots


class GQA(Attention):
    """Full attention; the state is the KV cache, 2 M H values per token."""

    class Config(AttentionConfig):
        """As `AttentionConfig`."""

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            cache = Held("cache", (self.sizes(d_model)["num_kv_heads"], context, self.head_dim))
            return {"k": cache, "v": cache}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            pairs = num_tokens * context + num_tokens * (num_tokens + 1) // 2
            return self.pair_flop_terms(d_model, num_tokens, pairs, consumer)

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        k_BMTH, v_BMTH = self.keys_values(x_BTD, span.positions_BT)
        if state is None:
            return {"k": k_BMTH, "v": v_BMTH}
        for name, new_BMTH in (("k", k_BMTH), ("v", v_BMTH)):
            write_slots(state[name], new_BMTH, span, axis=2)
        found = _filled(state, state.reach(x_BTD.shape[1]), x_BTD.dtype)
        return found | held_before(state, span)

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BNTH = self.queries(x_BTD, span.positions_BT)
        k_BMSH, v_BMSH = shared["k"], shared["v"]
        mask_B1TS = causal_mask(shared, k_BMSH.shape[2], span)
        return self.attend(x_BTD, q_BNTH, k_BMSH, v_BMSH, mask_B1TS)

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        k_BM1H, v_BM1H = self.keys_values(x_BD[:, None], positions_B[:, None])
        rows_B = torch.arange(x_BD.shape[0], device=x_BD.device)
        state["k"][rows_B, :, positions_B] = k_BM1H[:, :, 0].to(state["k"].dtype)
        state["v"][rows_B, :, positions_B] = v_BM1H[:, :, 0].to(state["v"].dtype)
        return _filled(state, state.step_reach(x_BD.device), x_BD.dtype)

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        q_BN1H = self.queries(x_BD[:, None], positions_B[:, None])
        return self.attend_step(x_BD, q_BN1H, shared["k"], shared["v"], positions_B)

    def fast_form(self) -> CachedAttention | None:
        return self.cached_form(None)


def _filled(state: State, reach: int, dtype: torch.dtype) -> Features:
    """The first `reach` slots of the cache, as a view where the dtypes agree."""
    return {name: state[name][:, :, :reach].to(dtype) for name in ("k", "v")}
