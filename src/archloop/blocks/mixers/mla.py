"""Multi-head latent attention without positions, as in Kimi Linear (arXiv 2510.26692).

A token is kept as one latent, ``c = RMSNorm(W_c x)``, and one key part that all heads share,
``s = W_s x``; each head reads ``k = [W_k c, s]`` and ``v = W_v c``. So the cache holds R + P values
per token for all heads together. Latent attention is DeepSeek-V2's (arXiv 2405.04434); there s is
rotated, here it is not (NoPE), the recurrent mixers between such blocks telling order.

The parallel form expands latents to keys and values. A decode step never does: W_k moves into the
query and W_v behind the sum, and attention runs on the latents themselves.

Shape suffixes: B batch, T new tokens, S keys, D model width, N heads, H head width, R latent width,
P shared key width, L = R + P.
"""

from typing import Annotated, Self, TypedDict

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from archloop.blocks.base import Features, Gene, Held, MixerConfig, SharingMixer, Span, State
from archloop.blocks.config import matrix_flops
from archloop.blocks.kv_cache import causal_mask, held_before, write_slots
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.attention import attention, attention_step
from archloop.blocks.widths import count_heads, scaled_heads


class Sizes(TypedDict):
    """What follows from the model width."""

    num_heads: int
    head_dim: int
    latent_dim: int
    shared_key_dim: int


class MLA(SharingMixer):
    """Latent attention; a consumer keeps its own way of reading the latents (W_k, W_v)."""

    packs = True

    class Config(MixerConfig):
        """Kimi Linear: latent 512, shared key part 64, head_dim 128."""

        through_sizes = frozenset({"num_heads"})
        head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=1)
        num_heads: int | None = Field(None, ge=1)
        """Default: ``d_model / head_dim``."""
        latent_dim: Annotated[int, Gene((64, 128, 256, 512))] = Field(128, ge=1)
        shared_key_dim: int = Field(32, ge=1)
        norm_eps: float = Field(1e-6, gt=0)

        def sizes(self, d_model: int) -> Sizes:
            num_heads = self.num_heads or count_heads(d_model, self.head_dim, f"d_model={d_model}")
            return {
                "num_heads": num_heads,
                "head_dim": self.head_dim,
                "latent_dim": self.latent_dim,
                "shared_key_dim": self.shared_key_dim,
            }

        def at_width(self, d_model: int, new: int) -> Self:
            num_heads = scaled_heads(self.sizes(d_model)["num_heads"], d_model, new)
            return self.model_copy(update={"num_heads": num_heads})

        def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
            heads = self.sizes(d_model)["num_heads"]
            terms = {
                "query_proj": d_model * heads * (self.head_dim + self.shared_key_dim),
                "up_proj": self.latent_dim * 2 * heads * self.head_dim,
                "out_proj": heads * self.head_dim * d_model,
            }
            if consumer:
                return terms
            return terms | {
                "latent_proj": d_model * (self.latent_dim + self.shared_key_dim),
                "latent_norm": self.latent_dim,
            }

        def state_layout(self, d_model: int, context: int) -> dict[str, Held]:
            width = self.latent_dim + self.shared_key_dim
            return {"latent": Held("cache", (context, width))}

        def flop_terms(
            self, d_model: int, num_tokens: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            heads = self.sizes(d_model)["num_heads"]
            pairs = num_tokens * context + num_tokens * (num_tokens + 1) // 2
            return self._projections(d_model, num_tokens, consumer) | {
                # Keys and values of every token so far are made from its latent.
                "up_proj": 4 * (context + num_tokens) * self.latent_dim * heads * self.head_dim,
                "scores": 2 * pairs * heads * (self.head_dim + self.shared_key_dim),
                "values": 2 * pairs * heads * self.head_dim,
            }

        def step_flop_terms(
            self, d_model: int, context: int, *, consumer: bool = False
        ) -> dict[str, int]:
            heads = self.sizes(d_model)["num_heads"]
            pairs = (context + 1) * heads
            return self._projections(d_model, 1, consumer) | {
                # Moved into the query and behind the sum, so that it meets one token alone.
                "up_proj": 4 * self.latent_dim * heads * self.head_dim,
                "scores": 2 * pairs * (self.latent_dim + self.shared_key_dim),
                "values": 2 * pairs * self.latent_dim,
            }

        def _projections(self, d_model: int, num_tokens: int, consumer: bool) -> dict[str, int]:
            params = self.param_terms(d_model, consumer=consumer)
            return matrix_flops(params, ("query_proj", "latent_proj", "out_proj"), num_tokens)

    def __init__(
        self, config: Config, d_model: int, block_index: int, num_blocks: int, consumer: bool
    ) -> None:
        super().__init__(config, d_model)
        self.num_heads = config.sizes(d_model)["num_heads"]
        self.head_dim, self.latent_dim = config.head_dim, config.latent_dim
        self.shared_key_dim = config.shared_key_dim
        self.key_dim = config.head_dim + config.shared_key_dim
        self.query_proj = Linear(d_model, self.num_heads * self.key_dim)
        inner = self.num_heads * self.head_dim
        self.up_proj = Linear(self.latent_dim, 2 * inner)
        self.out_proj = Linear(inner, d_model)
        if not consumer:
            self.latent_proj = Linear(d_model, self.latent_dim + self.shared_key_dim)
            self.latent_norm = RMSNorm(self.latent_dim, config.norm_eps)

    def features(self, x_BTD: Tensor, state: State | None, span: Span) -> Features:
        latent_BTL = self._latents(x_BTD)
        if state is None:
            return {"latent": latent_BTL}
        cache_BSL = state["latent"]
        write_slots(cache_BSL, latent_BTL, span)
        found = {"latent": cache_BSL[:, : state.reach(x_BTD.shape[1])].to(x_BTD.dtype)}
        return found | held_before(state, span)

    def read(self, x_BTD: Tensor, shared: Features, span: Span) -> Tensor:
        q_BNTK = self._heads(self.query_proj(x_BTD))
        latent_BSL = shared["latent"]
        c_BSR, s_BSP = latent_BSL.split([self.latent_dim, self.shared_key_dim], -1)
        k_BNSH, v_BNSH = (self._heads(part) for part in self.up_proj(c_BSR).chunk(2, -1))
        k_BNSK = torch.cat([k_BNSH, s_BSP[:, None].expand(-1, self.num_heads, -1, -1)], -1)
        mask_B1TS = causal_mask(shared, latent_BSL.shape[1], span)
        if not x_BTD.is_cuda:
            # PyTorch's memory-efficient attention for CPUs asks for values as wide as keys; with
            # others it falls back to a form that holds all scores at once.
            v_BNSH = F.pad(v_BNSH, (0, self.shared_key_dim))
        y_BNTK = attention(q_BNTK, k_BNSK, v_BNSH, mask_B1TS, self.key_dim**-0.5)
        y_BNTH = y_BNTK[..., : self.head_dim]
        return self.out_proj(y_BNTH.transpose(1, 2).flatten(2))

    def step_features(self, x_BD: Tensor, state: State, positions_B: Tensor) -> Features:
        cache_BSL = state["latent"]
        rows_B = torch.arange(x_BD.shape[0], device=x_BD.device)
        cache_BSL[rows_B, positions_B] = self._latents(x_BD).to(cache_BSL.dtype)
        return {"latent": cache_BSL[:, : state.step_reach(x_BD.device)].to(x_BD.dtype)}

    def step_read(self, x_BD: Tensor, shared: Features, positions_B: Tensor) -> Tensor:
        q_BNK = self.query_proj(x_BD).reshape(-1, self.num_heads, self.key_dim)
        q_BNH, q_BNP = q_BNK.split([self.head_dim, self.shared_key_dim], -1)
        up_NHR = self.up_proj.weight.reshape(2, self.num_heads, self.head_dim, self.latent_dim)
        q_BNR = torch.einsum("bnh,nhr->bnr", q_BNH, up_NHR[0])
        latent_B1SL = shared["latent"][:, None]
        y_B1NR = attention_step(
            torch.cat([q_BNR, q_BNP], -1)[:, None],
            latent_B1SL,
            latent_B1SL[..., : self.latent_dim],
            positions_B,
            self.key_dim**-0.5,
        )
        y_BNH = torch.einsum("bnr,nhr->bnh", y_B1NR[:, 0], up_NHR[1])
        return self.out_proj(y_BNH.flatten(1))

    def _latents(self, x: Tensor) -> Tensor:
        c, s = self.latent_proj(x).split([self.latent_dim, self.shared_key_dim], -1)
        return torch.cat([self.latent_norm(c), s], -1)

    def _heads(self, x_BTd: Tensor) -> Tensor:
        return x_BTd.reshape(*x_BTd.shape[:2], self.num_heads, -1).transpose(1, 2)
