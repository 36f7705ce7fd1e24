"""LFM2 and LFM2-MoE: configurations of both generations, and their tensors.

Two generations of `config.json` exist: the first (transformers 4.54 to 4.57) writes
``full_attn_idxs``, ``block_ff_dim`` and ``rope_theta``, the second ``layer_types``,
``intermediate_size`` and ``rope_parameters``. Both are read with the meaning that transformers
gives them; the second is written, with the keys that llama.cpp's converter asks for. All dense
feed-forwards of a model have one width there.
"""

from collections.abc import Collection, Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import (
    Layout,
    UnsayableError,
    first_mixer,
    only_mixer,
    sizes_of,
)
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.cost import mixer_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LONGEST_KERNEL = 64
_DEFAULT_THETA = 1e6
_DEFAULT_EPS = 1e-5


_EXAMPLE = {
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv"],
    "conv_L_cache": 4,
}


class LFM2(Layout):
    """Short convolutions and attention with QK-norm; dense or mixtures of experts."""

    model_types = {"lfm2": "Lfm2ForCausalLM", "lfm2_moe": "Lfm2MoeForCausalLM"}
    keeps_float32 = ("expert_bias",)
    variants = ("separate", "fused")
    """One tensor per expert (as on the hub), or one for all (as in transformers 5's memory)."""
    examples = (
        {**_EXAMPLE, "model_type": "lfm2", "block_auto_adjust_ff_dim": False},
        {**_EXAMPLE, "model_type": "lfm2", "conv_bias": True, "tie_word_embeddings": False},
        {
            **_EXAMPLE,
            "model_type": "lfm2_moe",
            "moe_intermediate_size": 24,
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        moe = keys.model_type == "lfm2_moe"
        # No implementation of LFM2 reads these keys of its first generation.
        keys.ignore(
            "block_dim conv_dim conv_dim_out num_heads block_norm_eps block_use_xavier_init "
            "conv_use_xavier_init block_mlp_init_scale block_out_init_scale"
        )
        keys.fixed("block_use_swiglu", True)
        keys.fixed("use_pos_enc", True)
        width = keys.number("hidden_size")
        layer_types = _layer_types(keys, moe)
        conv, attention = _conv(keys), _attention(keys, width)
        channels = _channels(keys, width, len(layer_types), moe)
        blocks = tuple(
            BlockSpec(mixers=(conv if layer_type == "conv" else attention,), channel_mixer=channel)
            for layer_type, channel in zip(layer_types, channels, strict=True)
        )
        tied = keys.boolean("tie_word_embeddings", True)
        mixer_config(attention).sizes(width)
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size"),
            blocks=blocks,
            tie_embeddings=keys.boolean("tie_embedding", tied),
            norm_eps=keys.real("norm_eps", _DEFAULT_EPS),
            max_context=keys.number("max_position_embeddings", 128_000),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types = []
        for index, block in enumerate(spec.blocks):
            mixer = only_mixer(block, index, "short_conv", "gqa")
            layer_types.append("conv" if mixer.name == "short_conv" else "full_attention")
        return {
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": layer_types,
            "max_position_embeddings": spec.max_context or 128_000,
            "norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            **_draft_mixers(spec),
            **_draft_channels(spec),
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec, "model.embedding_norm.weight")
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            names = ("operator_norm", "ffn_norm")
            yield from parts.norm_pieces(width, theirs, ours, names)
            mixer, inside = block.mixers[0], f"{ours}mixers.0."
            if mixer.name == "gqa":
                stem = f"{theirs}self_attn."
                yield from parts.attention_pieces(mixer, width, stem, inside, out="out_proj")
                yield from parts.qk_norm_pieces(mixer, width, stem, inside, name="layernorm")
            else:
                yield from parts.conv_pieces(mixer, width, f"{theirs}conv.", inside)
            theirs, ours = f"{theirs}feed_forward.", f"{ours}channel_mixer."
            assert block.channel_mixer is not None
            if block.channel_mixer.name == "moe":
                yield from _moe_pieces(block, width, theirs, ours, variant)
            else:
                yield from parts.swiglu_pieces(block, width, theirs, ours, ("w1", "w3", "w2"))

    def variant(self, stored: Collection[str]) -> str:
        fused = any(name.endswith("experts.gate_up_proj") for name in stored)
        return "fused" if fused else "separate"


# --- reading ------------------------------------------------------------------------------------


def _layer_types(keys: Keys, moe: bool) -> list[str]:
    num_layers = keys.number("num_hidden_layers", most=MOST_LAYERS)
    layer_types, indices = keys.get("layer_types"), keys.get("full_attn_idxs")
    if indices is not None:
        if not isinstance(indices, list) or any(
            type(index) is not int or not 0 <= index < num_layers for index in indices
        ):
            raise UserError(f"full_attn_idxs={indices!r}: must list layers 0 to {num_layers - 1}")
        listed = ["full_attention" if i in indices else "conv" for i in range(num_layers)]
        if layer_types is not None and layer_types != listed:
            raise UserError("layer_types and full_attn_idxs contradict each other")
        layer_types = listed
    if layer_types is None:
        if moe:
            raise UserError("config key 'layer_types' is missing; lfm2_moe has no default for it")
        # transformers takes every layer for attention where a dense configuration has neither
        # `layer_types` nor `full_attn_idxs`.
        return ["full_attention"] * num_layers
    return parts.layer_types_of(layer_types, num_layers, ("conv", "full_attention"))


def _conv(keys: Keys) -> MixerSpec:
    settings: dict[str, Scalar] = {"kernel": keys.number("conv_L_cache", 3, most=_LONGEST_KERNEL)}
    if keys.boolean("conv_bias", False):
        settings["bias"] = True
    return MixerSpec(name="short_conv", config=settings)


def _attention(keys: Keys, width: int) -> MixerSpec:
    settings = parts.heads(keys, width, default_kv_heads=8)
    settings |= parts.rope(keys, _DEFAULT_THETA)
    if settings["rope_theta"] == _DEFAULT_THETA:
        del settings["rope_theta"]
    if (eps := keys.real("norm_eps", _DEFAULT_EPS)) != _DEFAULT_EPS:
        settings["norm_eps"] = eps
    return MixerSpec(name="gqa", config=settings)


def _channels(keys: Keys, width: int, num_layers: int, moe: bool) -> list[ChannelMixerSpec]:
    dense = ChannelMixerSpec(
        name="swiglu",
        config={"expansion": parts.expansion(_dense_width(keys, moe), width, "dense")},
    )
    if not moe:
        return [dense] * num_layers
    num_dense = keys.count("num_dense_layers", 2)
    expert_width = keys.number("moe_intermediate_size", 1792)
    num_experts = keys.number("num_experts", 32, most=MOST_LAYERS)
    top_k = keys.number("num_experts_per_tok", 4)
    if top_k > num_experts:
        raise UserError(f"num_experts_per_tok={top_k} exceeds num_experts={num_experts}")
    settings: dict[str, Scalar] = {
        "num_experts": num_experts,
        "top_k": top_k,
        "expansion": parts.expansion(expert_width, width, "expert"),
    }
    if not keys.boolean("use_expert_bias", True):
        settings["use_bias"] = False
    if not keys.boolean("norm_topk_prob", True):
        settings["normalize"] = False
    if (scale := keys.real("routed_scaling_factor", 1.0)) != 1.0:
        settings["routed_scale"] = scale
    sparse = ChannelMixerSpec(name="moe", config=settings)
    return [dense if index < num_dense else sparse for index in range(num_layers)]


def _dense_width(keys: Keys, moe: bool) -> int:
    """The dense FFN's width after the auto-adjust rule (Lfm2MLP; absent in the MoE class)."""
    if moe:
        return keys.number("intermediate_size", 7168)
    width = keys.number("intermediate_size", 12288)
    width = keys.number("block_ff_dim", width)
    multiple = keys.number("block_multiple_of", 256)
    multiplier = keys.real("block_ffn_dim_multiplier", 1.0)
    if not keys.boolean("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if keys.is_null("block_ffn_dim_multiplier"):
        # transformers rounds to a multiple only where it applies the multiplier; without one, two
        # thirds of the width stay as they are.
        return width
    return multiple * -(-int(multiplier * width) // multiple)


# --- writing ------------------------------------------------------------------------------------


def _draft_mixers(spec: StackSpec) -> dict[str, Any]:
    conv = first_mixer(spec, "short_conv") or MixerSpec(name="short_conv")
    kernel, bias = (sizes_of(conv, spec.d_model)[key] for key in ("kernel", "bias"))
    one_head: dict[str, Scalar] = {"num_heads": 1, "queries_per_kv": 1}
    attention = first_mixer(spec, "gqa") or MixerSpec(name="gqa", config=one_head)
    return {
        "conv_L_cache": kernel,
        "conv_bias": bias,
        **parts.head_keys(attention, spec.d_model),
        "rope_parameters": parts.rope_keys(sizes_of(attention, spec.d_model)),
    }


def _draft_channels(spec: StackSpec) -> dict[str, Any]:
    channels = [block.channel_mixer for block in spec.blocks if block.channel_mixer is not None]
    for index, channel in enumerate(channels):
        if channel.name not in ("swiglu", "moe"):
            raise UnsayableError(f"block {index} has the channel mixer {channel.name}")
    dense = next((c for c in channels if c.name == "swiglu"), None)
    sparse = next((c for c in channels if c.name == "moe"), None)
    d_ff = sizes_of(dense, spec.d_model)["d_ff"] if dense else 8 * spec.d_model
    if sparse is None:
        return {
            "model_type": "lfm2",
            "intermediate_size": d_ff,
            "block_auto_adjust_ff_dim": False,
            # These two have no effect here, but llama.cpp's converter fails if they are absent.
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
        }
    sizes = sizes_of(sparse, spec.d_model)
    return {
        "model_type": "lfm2_moe",
        "intermediate_size": d_ff,
        "moe_intermediate_size": sizes["d_expert"],
        "num_dense_layers": sum(c.name == "swiglu" for c in channels),
        "num_experts": sizes["num_experts"],
        "num_experts_per_tok": sizes["top_k"],
        "use_expert_bias": sizes["use_bias"],
        "norm_topk_prob": sizes["normalize"],
        "routed_scaling_factor": sizes["routed_scale"],
    }


# --- tensors ------------------------------------------------------------------------------------


def _moe_pieces(
    block: BlockSpec, width: int, theirs: str, ours: str, variant: str
) -> Iterator[Piece]:
    assert block.channel_mixer is not None
    sizes = sizes_of(block.channel_mixer, width)
    num, d_ff = sizes["num_experts"], sizes["d_expert"]
    yield Piece(f"{theirs}gate.weight", f"{ours}router.weight", (num, width))
    if sizes["use_bias"]:
        yield Piece(f"{theirs}expert_bias", f"{ours}expert_bias", (num,))
    gate_up, down = f"{ours}gate_up", f"{ours}down"
    if variant == "fused":
        yield Piece(f"{theirs}experts.gate_up_proj", gate_up, (num, 2 * d_ff, width))
        yield Piece(f"{theirs}experts.down_proj", down, (num, width, d_ff))
        return
    yield from parts.expert_pieces(
        block.channel_mixer, width, f"{theirs}experts.", ours, ("w1", "w3", "w2")
    )
