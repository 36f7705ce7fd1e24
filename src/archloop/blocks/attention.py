"""Softmax attention with grouped queries, QK-norm and RoPE: what `gqa` and `swa` share.

Projections, their costs and the KV features live here; a subclass says which keys a query may see.

Shape suffixes: B batch, T new tokens, S keys, D model width, N query heads, M KV heads,
G = N/M queries per KV head, H head width.
"""

import math
from typing import Annotated, Literal, Self, TypedDict

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from archloop.blocks.adapter import Adapter, num_params
from archloop.blocks.base import Gene, MixerConfig, SharingMixer
from archloop.blocks.config import matrix_flops
from archloop.blocks.fast import CachedAttention
from archloop.blocks.linear import Linear
from archloop.blocks.norms import RMSNorm
from archloop.blocks.ops.attention import attention, attention_step
from archloop.blocks.ops.norm_rotate import norm_rotate
from archloop.blocks.ops.rope import STILL, Rope, turning_pairs
from archloop.blocks.widths import count_heads, scaled_heads
from archloop.errors import UserError


class AttentionSizes(TypedDict):
    """What follows from the model width."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class AttentionConfig(MixerConfig):
    """Heads follow from the width: ``num_heads = d_model / head_dim`` unless given."""

    through_sizes = frozenset({"queries_per_kv", "num_heads"})
    unshared = frozenset({"adapter"})
    head_dim: Annotated[int, Gene((32, 64, 128))] = Field(64, ge=2, multiple_of=2)
    queries_per_kv: Annotated[int | None, Gene((1, 2, 4, 8))] = Field(None, ge=1)
    """Default: 4, or as many up to it as divide the heads of a narrow model."""
    num_heads: int | None = Field(None, ge=1)
    qk_norm: bool = True
    norm_eps: float = Field(1e-5, gt=0)
    norm_offset: bool = False
    """QK-norms multiply by 1 + w (Gemma)."""
    rope_theta: float | None = Field(1e6, gt=1)
    rope_fraction: Annotated[float, Gene((0.25, 0.5, 1.0))] = Field(1.0, gt=0, le=1)
    """Share of a head's pairs that turn (LFM3: a half); the others carry no position."""
    rope_over: Literal["head", "turning"] = "head"
    """What frequencies run over: all pairs, or those that turn (Qwen3-Next); see `Rope`."""
    rope_factor: float = Field(1.0, ge=1)
    """Slows the pairs down, for texts longer than trained on (see `Rope`); 1 is off."""
    rope_trained_context: int | None = Field(None, ge=1)
    rope_low_freq_factor: float = Field(1.0, gt=0)
    rope_high_freq_factor: float = Field(4.0, gt=0)
    head_gate: Annotated[bool, Gene((False, True))] = False
    """Scale each head's output by a sigmoid of the input (LFM3; arXiv 2505.06708)."""
    channel_gate: Annotated[bool, Gene((False, True))] = False
    """Instead, each channel of each head by a gate of its own (Qwen3-Next)."""
    scale: float | None = Field(None, gt=0)
    """Factor on q.k; default head_dim^-1/2."""
    beside_embedding: bool = False
    """Read the stream and behind it the token's embedding (Zamba), twice the model's width."""
    adapter_rank: Annotated[int, Gene((0, 32, 128))] = Field(0, ge=0, le=4096)
    """Of a block's own addition to each of its projections of q, k and v, where blocks share the
    projections (Zamba2); 0 for none."""

    @property
    def rope(self) -> Rope | None:
        """Rotation of queries and keys."""
        if self.rope_theta is None:
            return None
        factors = self.rope_low_freq_factor, self.rope_high_freq_factor
        return Rope(
            self.rope_theta,
            self.rope_fraction,
            self.rope_factor,
            self.rope_trained_context,
            *factors,
            self.rope_over,
        )

    def sizes(self, d_model: int) -> AttentionSizes:
        num_heads = self.num_heads or count_heads(d_model, self.head_dim, f"d_model={d_model}")
        queries_per_kv = self.queries_per_kv or math.gcd(num_heads, 4)
        if num_heads % queries_per_kv:
            allowed = [q for q in range(1, num_heads + 1) if num_heads % q == 0]
            raise UserError(
                f"queries_per_kv={queries_per_kv} does not divide num_heads={num_heads}; "
                f"allowed: {allowed}"
            )
        if self.channel_gate and self.head_gate:
            raise UserError("channel_gate and head_gate exclude each other; allowed: one of them")
        turning = turning_pairs(self.rope_fraction, self.head_dim // 2)
        if self.rope_over == "turning" and not turning:
            raise UserError(
                f"rope_fraction={self.rope_fraction} turns nothing of head_dim={self.head_dim}; "
                f"allowed: at least {2 / self.head_dim}"
            )
        num_kv_heads = num_heads // queries_per_kv
        return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": self.head_dim}

    def at_width(self, d_model: int, new: int) -> Self:
        sizes = self.sizes(d_model)
        group = sizes["num_heads"] // sizes["num_kv_heads"]
        num_heads = scaled_heads(sizes["num_heads"], d_model, new, group)
        return self.model_copy(update={"num_heads": num_heads, "queries_per_kv": group})

    def input_width(self, d_model: int) -> int:
        return 2 * d_model if self.beside_embedding else d_model

    def param_terms(self, d_model: int, *, consumer: bool = False) -> dict[str, int]:
        width, outputs = self.input_width(d_model), self.projected(d_model, consumer)
        terms = {
            "qkv_proj": width * sum(outputs),
            "out_proj": outputs[0] * d_model,
        }
        if self.head_gate or self.channel_gate:
            terms["gate_proj"] = width * self.num_gates(d_model)
        if self.adapter_rank:
            terms["adapter"] = num_params(width, outputs, self.adapter_rank)
        if self.qk_norm:
            terms["q_norm"] = self.head_dim
            terms |= {} if consumer else {"k_norm": self.head_dim}
        return terms

    def num_gates(self, d_model: int) -> int:
        """Gates on the outputs of all heads."""
        per_head = self.head_dim if self.channel_gate else int(self.head_gate)
        return self.sizes(d_model)["num_heads"] * per_head

    def projected(self, d_model: int, consumer: bool) -> tuple[int, ...]:
        """Widths of all queries, keys and values; of queries alone for a consumer."""
        sizes = self.sizes(d_model)
        q, kv = (sizes[heads] * self.head_dim for heads in ("num_heads", "num_kv_heads"))
        return (q,) if consumer else (q, kv, kv)

    def pair_flop_terms(
        self, d_model: int, num_tokens: int, num_pairs: int, consumer: bool
    ) -> dict[str, int]:
        """FLOPs of the projections of `num_tokens`, and of `num_pairs` pairs of query and key."""
        params = self.param_terms(d_model, consumer=consumer)
        matrices = ("qkv_proj", "adapter", "gate_proj", "out_proj")
        projections = matrix_flops(params, matrices, num_tokens)
        q = self.projected(d_model, consumer)[0]
        return projections | {"scores": 2 * num_pairs * q, "values": 2 * num_pairs * q}


class Attention(SharingMixer):
    """Projections and features of attention. A consumer has queries and output only."""

    packs = True

    def __init__(
        self,
        config: AttentionConfig,
        d_model: int,
        block_index: int,
        num_blocks: int,
        consumer: bool,
    ) -> None:
        super().__init__(config, d_model)
        sizes = config.sizes(d_model)
        self.num_heads, self.num_kv_heads = sizes["num_heads"], sizes["num_kv_heads"]
        self.head_dim = config.head_dim
        self.rope_theta, self.rope = config.rope_theta, config.rope
        self.scale = config.scale or config.head_dim**-0.5
        outputs, rank = config.projected(d_model, consumer), config.adapter_rank
        self.qkv_proj = Linear(self.input_width, sum(outputs))
        self.adapter = Adapter(self.input_width, outputs, rank) if rank else None
        self.out_proj = Linear(outputs[0], d_model)
        self.channel_gate = config.channel_gate
        gates = config.num_gates(d_model)
        self.gate_proj = Linear(self.input_width, gates) if gates else None
        self.q_norm = _head_norm(config)
        self.k_norm = None if consumer else _head_norm(config)

    def queries(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        """Queries after norm and RoPE, (B, N, T, H)."""
        width = self.num_heads * self.head_dim
        q_BTd = F.linear(x_BTD, self.qkv_proj.weight[:width])
        if self.adapter is not None:
            q_BTd = q_BTd + self.adapter(x_BTD, slice(0, 1))
        return self._placed(q_BTd, self.num_heads, self.q_norm, positions_BT)

    def keys_values(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Keys after norm and RoPE, and values, each (B, M, T, H)."""
        assert self.k_norm is not None, "a consumer has no keys of its own"
        width = self.num_heads * self.head_dim
        kv = F.linear(x_BTD, self.qkv_proj.weight[width:])
        if self.adapter is not None:
            kv = kv + self.adapter(x_BTD, slice(1, None))
        k_BTd, v_BTd = kv.chunk(2, -1)
        return self._placed(k_BTd, self.num_kv_heads, self.k_norm, positions_BT), self._heads(v_BTd)

    def attend(
        self,
        x_BTD: Tensor,
        q_BNTH: Tensor,
        k_BMSH: Tensor,
        v_BMSH: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Output of each query; `mask` (B or 1, 1, T, S) is True where allowed, None for causal."""
        return self.join(x_BTD, attention(q_BNTH, k_BMSH, v_BMSH, mask, self.scale))

    def join(self, x_BTD: Tensor, y_BNTH: Tensor) -> Tensor:
        """What becomes of the heads' outputs, (B, T, D), for the mixer's input x."""
        y_BTNH = y_BNTH.transpose(1, 2)
        if self.gate_proj is not None:
            gate_BTd = self.gate_proj(x_BTD).sigmoid()
            y_BTNH = y_BTNH * gate_BTd.unflatten(-1, (self.num_heads, -1))
        return self.out_proj(y_BTNH.flatten(2))

    def attend_step(
        self, x_BD: Tensor, q_BN1H: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, positions_B: Tensor
    ) -> Tensor:
        """As `attend` for one token, which sees each slot up to its position.

        The queries of a group read their KV head once.
        """
        batch = q_BN1H.shape[0]
        q_BMGH = q_BN1H.view(batch, self.num_kv_heads, -1, self.head_dim)
        y_BMGH = attention_step(q_BMGH, k_BMSH, v_BMSH, positions_B, self.scale)
        return self.join(x_BD[:, None], y_BMGH.reshape(batch, -1, 1, self.head_dim))[:, 0]

    def _placed(
        self, x_BTd: Tensor, num_heads: int, norm: nn.Module, positions_BT: Tensor
    ) -> Tensor:
        """Heads after norm and RoPE."""
        weight_H, eps = (norm.scale, norm.eps) if isinstance(norm, RMSNorm) else (None, 0.0)
        return norm_rotate(x_BTd, num_heads, weight_H, eps, positions_BT, self.rope)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def cached_form(self, window: int | None) -> CachedAttention | None:
        """What engines may have a kernel for; None where it has settings that form lacks."""
        if self.channel_gate or self.adapter is not None or self.input_width != self.d_model:
            return None
        norms, q_norm, k_norm = None, self.q_norm, self.k_norm
        if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            norms = (q_norm.scale, k_norm.scale, q_norm.eps)
        return CachedAttention(
            self.qkv_proj.weight,
            self.out_proj.weight,
            norms,
            self.num_heads,
            self.head_dim,
            self.scale,
            self.rope or STILL,
            window,
            None if self.gate_proj is None else self.gate_proj.weight,
        )


def _head_norm(config: AttentionConfig) -> nn.Module:
    """The norm of each query or key."""
    if not config.qk_norm:
        return nn.Identity()
    return RMSNorm(config.head_dim, config.norm_eps, offset=config.norm_offset)
