"""Gemma 3's text models: windowed attention with full attention now and then, GeGLU.

Norms multiply by 1 + w, each branch is normed once more before it is added, embeddings are scaled
by the root of the width, and each type of attention has its own base of RoPE (arXiv 2503.19786).
"""

import math
from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import (
    Layout,
    first_mixer,
    layer_types,
    sizes_of,
)
from archloop.checkpoints.pieces import Piece
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_MIXERS = {"swa": "sliding_attention", "gqa": "full_attention"}
_BASES = {
    "sliding_attention": ("rope_local_base_freq", 1e4),
    "full_attention": ("rope_theta", 1e6),
}
"""The key of older configurations for each attention's base of RoPE, and its default."""
_NORMS = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_post_norm",
    "pre_feedforward_layernorm": "channel_norm",
    "post_feedforward_layernorm": "channel_post_norm",
}
_EXAMPLE = {
    "model_type": "gemma3_text",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": 9,
    "pad_token_id": 0,
}


class Gemma3(Layout):
    """As the module says; transformers' `Gemma3ForCausalLM`."""

    model_types = {"gemma3_text": "Gemma3ForCausalLM"}
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-4,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            },
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        keys.fixed("hidden_activation", "gelu_pytorch_tanh")
        keys.fixed("use_bidirectional_attention", False)
        width, eps = keys.number("hidden_size", 2304), keys.real("rms_norm_eps", 1e-6)
        shared: dict[str, Scalar] = {"norm_eps": eps, "norm_offset": True}
        shared |= parts.heads(keys, width, default_kv_heads=4, head_dim=256)
        scalar = keys.number("query_pre_attn_scalar", 256)
        if scalar != shared["head_dim"]:
            shared["scale"] = scalar**-0.5
        window = keys.number("sliding_window", 4096)
        rope = _rope(keys)
        mixers = {
            "sliding_attention": MixerSpec(
                name="swa",
                config={"window": window, **shared, **rope["sliding_attention"]},
            ),
            "full_attention": MixerSpec(name="gqa", config={**shared, **rope["full_attention"]}),
        }
        ratio = parts.expansion(keys.number("intermediate_size", 9216), width)
        geglu = ChannelMixerSpec(name="geglu", config={"expansion": ratio})
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 262_208),
            blocks=tuple(
                BlockSpec(mixers=(mixers[layer_type],), channel_mixer=geglu, post_norms=True)
                for layer_type in _layer_types(keys)
            ),
            tie_embeddings=keys.boolean("tie_word_embeddings", True),
            norm_eps=eps,
            norm_offset=True,
            embedding_multiplier=math.sqrt(width),
            max_context=keys.number("max_position_embeddings", 131_072),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        listed = layer_types(spec, _MIXERS, "geglu")
        full, windowed = first_mixer(spec, "gqa"), first_mixer(spec, "swa")
        attention = full or windowed
        assert attention is not None
        values = sizes_of(attention, spec.d_model)
        scale = values["scale"]
        channel = spec.blocks[0].channel_mixer
        assert channel is not None
        return {
            "model_type": "gemma3_text",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": listed,
            "intermediate_size": sizes_of(channel, spec.d_model)["d_ff"],
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": spec.max_context or 131_072,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "sliding_window": sizes_of(windowed, spec.d_model)["window"] if windowed else 4096,
            "query_pre_attn_scalar": values["head_dim"] if scale is None else round(scale**-2),
            "rope_parameters": {
                layer_type: parts.rope_keys(sizes_of(mixer, spec.d_model))
                for layer_type, mixer in (("sliding_attention", windowed), ("full_attention", full))
                if mixer is not None
            },
            **parts.head_keys(attention, spec.d_model),
            "head_dim": values["head_dim"],
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec)
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            for name, target in _NORMS.items():
                yield Piece(f"{theirs}{name}.weight", f"{ours}{target}.weight", (width,))
            mixer, stem = block.mixers[0], f"{theirs}self_attn."
            yield from parts.attention_pieces(mixer, width, stem, f"{ours}mixers.0.")
            yield from parts.qk_norm_pieces(mixer, width, stem, f"{ours}mixers.0.")
            yield from parts.swiglu_pieces(block, width, f"{theirs}mlp.", f"{ours}channel_mixer.")


def _layer_types(keys: Keys) -> list[str]:
    num_layers = keys.number("num_hidden_layers", 26, most=MOST_LAYERS)
    # Under both names: as configurations on the hub have it, and as transformers writes it.
    pattern = keys.number("sliding_window_pattern", keys.number("_sliding_window_pattern", 6))
    layer_types = keys.get("layer_types")
    if layer_types is None:
        return [
            "sliding_attention" if (index + 1) % pattern else "full_attention"
            for index in range(num_layers)
        ]
    return parts.layer_types_of(layer_types, num_layers, _BASES)


def _rope(keys: Keys) -> dict[str, dict[str, Scalar]]:
    """Settings of RoPE for each type of attention, in the newer form or in the older."""
    found: dict[str, dict[str, Scalar]] = {
        layer_type: {"rope_theta": keys.real(key, default)}
        for layer_type, (key, default) in _BASES.items()
    }
    with keys.inside("rope_scaling") as older:
        found["full_attention"] |= parts.rope_type_settings(
            older, "rope_scaling.", ("default", "linear")
        )
    with keys.inside("rope_parameters") as outer:
        for layer_type in _BASES:
            key = f"rope_parameters.{layer_type}"
            with outer.inside(key) as inner:
                if f"{key}.rope_theta" in inner:
                    found[layer_type]["rope_theta"] = inner.real(f"{key}.rope_theta")
                found[layer_type] |= parts.rope_type_settings(
                    inner, f"{key}.", ("default", "linear")
                )
    return found
