"""LFM3: short convolutions, windowed attention and full attention in one stack.

Heads are gated, half of the pairs of a full attention's heads turn, each type of attention has its
own base of RoPE, and every branch is normed once more before it is added (sandwich norms).
"""

from collections.abc import Iterator
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
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_DEFAULT_ROPE: dict[str, dict[str, Scalar]] = {
    "sliding_attention": {"rope_theta": 1e4},
    "full_attention": {"rope_theta": 1e6, "rope_fraction": 0.5},
}
_MIXERS = {"short_conv": "conv", "swa": "sliding_attention", "gqa": "full_attention"}
_EXAMPLE = {
    "model_type": "lfm3",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "sliding_window": 9,
    "pad_token_id": 0,
}


class LFM3(Layout):
    """As the module says; transformers' `Lfm3ForCausalLM`."""

    model_types = {"lfm3": "Lfm3ForCausalLM"}
    examples = (
        _EXAMPLE,
        {**_EXAMPLE, "conv_bias": True, "conv_L_cache": 3, "tie_word_embeddings": False},
        {**_EXAMPLE, "use_attention_gate": False, "use_sandwich_norm": False, "norm_eps": 1e-4},
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        width, eps = keys.number("hidden_size", 2048), keys.real("norm_eps", 1e-5)
        shared: dict[str, Scalar] = {"norm_eps": eps, **parts.heads(keys, width, head_dim=128)}
        shared["head_gate"] = keys.boolean("use_attention_gate", True)
        rope, window = _rope(keys), keys.number("sliding_window", 256)
        conv: dict[str, Scalar] = {"kernel": keys.number("conv_L_cache", 7, most=64)}
        if keys.boolean("conv_bias", False):
            conv["bias"] = True
        settings = {
            "conv": ("short_conv", conv),
            "sliding_attention": (
                "swa", {"window": window, **shared, **rope["sliding_attention"]}
            ),
            "full_attention": ("gqa", {**shared, **rope["full_attention"]}),
        }  # fmt: skip
        ratio = parts.expansion(keys.number("intermediate_size", 7680), width)
        swiglu = ChannelMixerSpec(name="swiglu", config={"expansion": ratio})
        sandwich = keys.boolean("use_sandwich_norm", True)
        blocks = []
        for layer_type in _layer_types(keys):
            name, config = settings[layer_type]
            mixer = MixerSpec(name=name, config=config)
            blocks.append(BlockSpec(mixers=(mixer,), channel_mixer=swiglu, post_norms=sandwich))
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 128_000),
            blocks=tuple(blocks),
            tie_embeddings=keys.boolean("tie_word_embeddings", True),
            norm_eps=eps,
            max_context=keys.number("max_position_embeddings", 128_000),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types = []
        for index, block in enumerate(spec.blocks):
            layer_types.append(_MIXERS[only_mixer(block, index, *_MIXERS).name])
            assert block.channel_mixer is not None
            if block.channel_mixer.name != "swiglu":
                raise UnsayableError(f"block {index} has {block.channel_mixer.name}")
        if not layer_types:
            raise UnsayableError("the stack has no block")
        conv = first_mixer(spec, "short_conv") or MixerSpec(name="short_conv")
        full, windowed = first_mixer(spec, "gqa"), first_mixer(spec, "swa")
        attention = full or windowed
        if attention is None:
            raise UnsayableError("the stack has no attention")
        rope = {
            layer_type: parts.rope_keys(sizes_of(mixer, spec.d_model))
            for layer_type, mixer in (("sliding_attention", windowed), ("full_attention", full))
            if mixer is not None
        }
        channel = spec.blocks[0].channel_mixer
        assert channel is not None
        values = sizes_of(attention, spec.d_model)
        return {
            "model_type": "lfm3",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": layer_types,
            "intermediate_size": sizes_of(channel, spec.d_model)["d_ff"],
            "max_position_embeddings": spec.max_context or 128_000,
            "norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "conv_L_cache": sizes_of(conv, spec.d_model)["kernel"],
            "conv_bias": sizes_of(conv, spec.d_model)["bias"],
            "sliding_window": sizes_of(windowed, spec.d_model)["window"] if windowed else 256,
            "use_attention_gate": values["head_gate"],
            "use_sandwich_norm": spec.blocks[0].post_norms,
            "rope_parameters": rope,
            **parts.head_keys(attention, spec.d_model),
            "head_dim": values["head_dim"],
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec, "model.embedding_norm.weight")
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            norms = {"operator_norm": "mixer_norm", "ffn_norm": "channel_norm"}
            if block.post_norms:
                norms |= {"post_operator_norm": "mixer_post_norm"}
                norms |= {"post_ffn_norm": "channel_post_norm"}
            for name, target in norms.items():
                yield Piece(f"{theirs}{name}.weight", f"{ours}{target}.weight", (width,))
            mixer, inside = block.mixers[0], f"{ours}mixers.0."
            if mixer.name == "short_conv":
                yield from parts.conv_pieces(mixer, width, f"{theirs}conv.", inside)
            else:
                yield from parts.attention_pieces(mixer, width, f"{theirs}self_attn.", inside)
                yield from parts.qk_norm_pieces(mixer, width, f"{theirs}self_attn.", inside)
                if (values := sizes_of(mixer, width))["head_gate"]:
                    name, shape = (
                        f"{theirs}self_attn.gate_proj.weight",
                        (values["num_heads"], width),
                    )
                    yield Piece(name, f"{inside}gate_proj.weight", shape)
            stem, names = f"{theirs}feed_forward.", ("w1", "w3", "w2")
            yield from parts.swiglu_pieces(block, width, stem, f"{ours}channel_mixer.", names)


def _layer_types(keys: Keys) -> list[str]:
    num_layers = keys.number("num_hidden_layers", 24, most=MOST_LAYERS)
    layer_types = keys.get("layer_types")
    if layer_types is None:
        # What transformers does without them, and what LFM3-1.7B is.
        return [_layer_type_at(index) for index in range(num_layers)]
    return parts.layer_types_of(layer_types, num_layers, _MIXERS.values())


def _layer_type_at(index: int) -> str:
    if index % 4 == 2:
        return "full_attention"
    return "sliding_attention" if index % 4 == 0 and index else "conv"


def _rope(keys: Keys) -> dict[str, dict[str, Scalar]]:
    """Settings of RoPE for each type of attention."""
    if "rope_parameters" not in keys:
        return _DEFAULT_ROPE
    found: dict[str, dict[str, Scalar]] = dict(_DEFAULT_ROPE)
    with keys.inside("rope_parameters") as outer:
        for layer_type in _DEFAULT_ROPE:
            key = f"rope_parameters.{layer_type}"
            if key not in outer:
                continue
            with outer.inside(key) as inner:
                theta = inner.real(f"{key}.rope_theta")
                more = parts.rope_type_settings(inner, f"{key}.", ("default", "proportional"))
                found[layer_type] = {"rope_theta": theta, **more}
    return found
