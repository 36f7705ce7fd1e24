"""Kimi Linear: KDA and now and then latent attention without positions, experts after block 0.

As transformers writes it and as configurations on the hub have it, where a sub-object
``linear_attn_config`` lists the layers of each type, counted from 1 (arXiv 2510.26692).
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
from archloop.checkpoints.pieces import Piece, rows
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LAYER_TYPES = {"kda": "linear_attention", "mla": "full_attention"}
_CHANNELS = {"swiglu": "dense", "moe": "sparse"}
_LATENT_EPS = 1e-6
"""Of the norm of latents, which no key says."""
_EXAMPLE = {
    "model_type": "kimi_linear",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 8,
    "num_expert_group": 4,
    "topk_group": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 5,
    "layer_types": ["linear_attention", "full_attention"],
    "pad_token_id": 0,
}


class KimiLinear(Layout):
    """As the module says; transformers' `KimiLinearForCausalLM`."""

    model_types = {"kimi_linear": "KimiLinearForCausalLM"}
    keeps_float32 = ("A_log", "dt_bias", "e_score_correction_bias")
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "num_expert_group": 1,
            "topk_group": 1,
            "num_shared_experts": 2,
            "moe_renormalize": False,
            "routed_scaling_factor": 1.0,
            "linear_conv_kernel_dim": 3,
            "linear_head_dim": 16,
            "linear_num_heads": 3,
            "rms_norm_eps": 1e-4,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        _check_fixed(keys)
        width, eps = keys.number("hidden_size", 2304), keys.real("rms_norm_eps", 1e-5)
        kda, layer_types = _linear(keys, eps)
        mixers = {
            "linear_attention": MixerSpec(name="kda", config=kda),
            "full_attention": MixerSpec(name="mla", config=_latent(keys)),
        }
        ratio = parts.expansion(keys.number("intermediate_size", 9216), width)
        channels = {
            "dense": ChannelMixerSpec(name="swiglu", config={"expansion": ratio}),
            "sparse": ChannelMixerSpec(name="moe", config=_experts(keys, width)),
        }
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 163_840),
            blocks=tuple(
                BlockSpec(mixers=(mixers[layer_type],), channel_mixer=channels[channel])
                for layer_type, channel in zip(
                    layer_types, _mlp_layer_types(keys, len(layer_types)), strict=True
                )
            ),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            max_context=_either(keys, "model_max_length", "max_position_embeddings", 1_048_576),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types, channels = [], []
        for index, block in enumerate(spec.blocks):
            layer_types.append(_LAYER_TYPES[only_mixer(block, index, *_LAYER_TYPES).name])
            assert block.channel_mixer is not None
            if block.channel_mixer.name not in _CHANNELS:
                raise UnsayableError(f"block {index} has {block.channel_mixer.name}")
            channels.append(_CHANNELS[block.channel_mixer.name])
        return {
            "model_type": "kimi_linear",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": layer_types,
            "mlp_layer_types": channels,
            "model_max_length": spec.max_context or 1_048_576,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            **_mixer_keys(spec),
            **_channel_keys(spec),
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec)
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            yield from parts.norm_pieces(width, theirs, ours)
            sizes, stem = sizes_of(block.mixers[0], width), f"{theirs}self_attn."
            make = _kda_pieces if block.mixers[0].name == "kda" else _mla_pieces
            yield from make(sizes, width, stem, f"{ours}mixers.0.")
            stem, inside = f"{theirs}block_sparse_moe.", f"{ours}channel_mixer."
            channel = block.channel_mixer
            assert channel is not None
            if channel.name == "swiglu":
                yield from parts.swiglu_pieces(block, width, stem, inside)
                continue
            num = sizes_of(channel, width)["num_experts"]
            yield Piece(f"{stem}gate.weight", f"{inside}router.weight", (num, width))
            name = f"{stem}gate.e_score_correction_bias"
            yield Piece(name, f"{inside}expert_bias", (num,))
            names = ("w1", "w3", "w2")
            yield from parts.expert_pieces(channel, width, f"{stem}experts.", inside, names)
            yield from parts.shared_expert_pieces(channel, width, f"{stem}shared_experts.", inside)


# --- reading ------------------------------------------------------------------------------------


def _check_fixed(keys: Keys) -> None:
    """Settings that are built in one way, and those that change nothing."""
    keys.fixed("q_lora_rank", None)
    keys.fixed("mla_use_nope", True)
    keys.fixed("moe_router_activation_func", "sigmoid")
    keys.fixed("num_nextn_predict_layers", 0)
    keys.fixed("moe_layer_freq", 1)
    keys.fixed("use_grouped_topk", True)
    # Widths that follow from others, and RoPE, which nothing of the family has.
    keys.ignore("head_dim qk_head_dim rope_theta rope_scaling rope_parameters rope_interleave")


def _either(keys: Keys, name: str, other: str, default: int) -> int:
    """A number that has two names: that of the hub's configurations and that of transformers."""
    found = [keys.number(key) for key in (name, other) if key in keys]
    if len(set(found)) > 1:
        raise UserError(f"{name}={found[0]} and {other}={found[1]} contradict each other")
    return found[0] if found else default


def _linear(keys: Keys, eps: float) -> tuple[dict[str, Scalar], list[str]]:
    """Settings of KDA, and the type of each layer."""
    num_layers = keys.number("num_hidden_layers", 27, most=MOST_LAYERS)
    settings = {
        "head_dim": keys.number("linear_head_dim", 128),
        "num_key_heads": keys.number("linear_num_heads", 32),
        "kernel": keys.number("linear_conv_kernel_dim", 4, most=64),
    }
    layer_types = keys.get("layer_types")
    stem = "linear_attn_config"
    with keys.inside(stem) as inner:
        for ours, theirs in (
            ("head_dim", "head_dim"),
            ("num_key_heads", "num_heads"),
            ("kernel", "short_conv_kernel_size"),
        ):
            settings[ours] = inner.number(f"{stem}.{theirs}", settings[ours])
        listed = [inner.get(f"{stem}.{key}") for key in ("full_attn_layers", "kda_layers")]
    if layer_types is None and None not in listed:
        layer_types = _from_lists(listed, num_layers)
    if layer_types is None:
        layer_types = [
            "full_attention" if index and index % 4 == 0 else "linear_attention"
            for index in range(num_layers)
        ]
    return {**settings, "norm_eps": eps}, parts.layer_types_of(
        layer_types, num_layers, _LAYER_TYPES.values()
    )


def _from_lists(listed: list[Any], num_layers: int) -> list[str]:
    """Layers of full attention and of KDA, counted from 1, each layer once."""
    full, linear = (layers if isinstance(layers, list) else [] for layers in listed)
    numbers = [layer for layer in (*full, *linear) if type(layer) is int]
    if sorted(numbers) != list(range(1, num_layers + 1)):
        raise UserError(
            "linear_attn_config must list each layer from 1 to "
            f"num_hidden_layers={num_layers} once, under full_attn_layers or kda_layers"
        )
    return [
        "full_attention" if layer in full else "linear_attention"
        for layer in range(1, num_layers + 1)
    ]


def _latent(keys: Keys) -> dict[str, Scalar]:
    heads, head_dim = keys.number("num_attention_heads", 32), keys.number("qk_nope_head_dim", 128)
    for key, wanted in (("num_key_value_heads", heads), ("v_head_dim", head_dim)):
        if keys.number(key, wanted) != wanted:
            raise UserError(f"config key {key!r} is {keys.get(key)!r}; only {wanted} is supported")
    return {
        "num_heads": heads,
        "head_dim": head_dim,
        "latent_dim": keys.number("kv_lora_rank", 512),
        "shared_key_dim": keys.number("qk_rope_head_dim", 64),
        "norm_eps": _LATENT_EPS,
    }


def _mlp_layer_types(keys: Keys, num_layers: int) -> list[str]:
    num_dense = keys.count("first_k_dense_replace", 1)
    layer_types = keys.get("mlp_layer_types")
    if layer_types is None:
        return ["dense" if index < num_dense else "sparse" for index in range(num_layers)]
    return parts.layer_types_of(layer_types, num_layers, _CHANNELS.values(), "mlp_layer_types")


def _experts(keys: Keys, width: int) -> dict[str, Scalar]:
    hidden = keys.number("moe_intermediate_size", 1024)
    num_shared = keys.count("num_shared_experts", keys.count("n_shared_experts", 1))
    normalize = keys.boolean("moe_renormalize", keys.boolean("norm_topk_prob", True))
    return {
        "router": "kimi",
        "num_experts": _either(keys, "num_experts", "num_local_experts", 256),
        "top_k": _either(keys, "num_experts_per_token", "num_experts_per_tok", 8),
        "expansion": parts.expansion(hidden, width, "expert"),
        "shared_expansion": parts.expansion(num_shared * hidden, width, "shared expert"),
        "num_groups": _either(keys, "num_expert_group", "n_group", 1),
        "top_groups": keys.number("topk_group", 1),
        "normalize": normalize,
        "routed_scale": keys.real("routed_scaling_factor", 2.446),
    }


# --- writing ------------------------------------------------------------------------------------


def _mixer_keys(spec: StackSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (kda := first_mixer(spec, "kda")) is not None:
        values = sizes_of(kda, spec.d_model)
        if values["core"] != "recurrent":
            raise UnsayableError(f"kda has core={values['core']!r}")
        found |= {
            "linear_head_dim": values["head_dim"],
            "linear_num_heads": values["num_heads"],
            "linear_conv_kernel_dim": values["kernel"],
        }
    if (mla := first_mixer(spec, "mla")) is not None:
        values = sizes_of(mla, spec.d_model)
        found |= {
            "num_attention_heads": values["num_heads"],
            "num_key_value_heads": values["num_heads"],
            "qk_nope_head_dim": values["head_dim"],
            "v_head_dim": values["head_dim"],
            "kv_lora_rank": values["latent_dim"],
            "qk_rope_head_dim": values["shared_key_dim"],
        }
    return found


def _channel_keys(spec: StackSpec) -> dict[str, Any]:
    channels = parts.channel_mixers(spec)
    dense, sparse = channels.get("swiglu"), channels.get("moe")
    found: dict[str, Any] = {}
    if dense is not None:
        found["intermediate_size"] = sizes_of(dense, spec.d_model)["d_ff"]
    if sparse is None:
        return found
    sizes = sizes_of(sparse, spec.d_model)
    shared = sizes.get("d_shared", 0)
    if shared % sizes["d_expert"]:
        raise UnsayableError(f"a shared expert {shared} wide is no number of experts")
    return found | {
        "moe_intermediate_size": sizes["d_expert"],
        "num_experts": sizes["num_experts"],
        "num_experts_per_token": sizes["top_k"],
        "num_shared_experts": shared // sizes["d_expert"],
        "num_expert_group": sizes["num_groups"],
        "topk_group": sizes["top_groups"],
        "moe_renormalize": sizes["normalize"],
        "routed_scaling_factor": sizes["routed_scale"],
    }


# --- tensors ------------------------------------------------------------------------------------


def _kda_pieces(sizes: dict[str, Any], width: int, theirs: str, ours: str) -> Iterator[Piece]:
    heads, rank = sizes["num_heads"], sizes["head_dim"]
    inner = heads * rank
    named = [(f"{theirs}{letter}_proj.weight", inner) for letter in "qkv"]
    yield from rows(named, f"{ours}conv_proj.weight", width)
    shape = (inner, 1, sizes["kernel"])
    for index, letter in enumerate("qkv"):
        into = (slice(index * inner, (index + 1) * inner),)
        yield Piece(f"{theirs}{letter}_conv1d.weight", f"{ours}conv", shape, into=into)
    for name, target in (("f", "decay"), ("g", "gate")):
        yield Piece(f"{theirs}{name}_a_proj.weight", f"{ours}{target}_down.weight", (rank, width))
        yield Piece(f"{theirs}{name}_b_proj.weight", f"{ours}{target}_up.weight", (inner, rank))
    yield Piece(f"{theirs}b_proj.weight", f"{ours}beta_proj.weight", (heads, width))
    yield Piece(f"{theirs}A_log", f"{ours}log_rate", (1, 1, heads, 1))
    yield Piece(f"{theirs}dt_bias", f"{ours}dt_bias", (inner,))
    yield Piece(f"{theirs}o_norm.weight", f"{ours}norm.weight", (rank,))
    yield Piece(f"{theirs}o_proj.weight", f"{ours}out_proj.weight", (width, inner))


def _mla_pieces(sizes: dict[str, Any], width: int, theirs: str, ours: str) -> Iterator[Piece]:
    heads, head, latent = sizes["num_heads"], sizes["head_dim"], sizes["latent_dim"]
    shared, inner = sizes["shared_key_dim"], sizes["num_heads"] * sizes["head_dim"]
    shape = (heads * (head + shared), width)
    yield Piece(f"{theirs}q_proj.weight", f"{ours}query_proj.weight", shape)
    name = f"{theirs}kv_a_proj_with_mqa.weight"
    yield Piece(name, f"{ours}latent_proj.weight", (latent + shared, width))
    yield Piece(f"{theirs}kv_a_layernorm.weight", f"{ours}latent_norm.weight", (latent,))
    # Theirs has keys and values of one head after the other, ours all keys and then all values.
    name, shape = f"{theirs}kv_b_proj.weight", (2 * inner, latent)
    for index in range(heads):
        for part in range(2):
            start, to = (2 * index + part) * head, part * inner + index * head
            source, into = (slice(start, start + head),), (slice(to, to + head),)
            yield Piece(name, f"{ours}up_proj.weight", shape, source=source, into=into)
    yield Piece(f"{theirs}o_proj.weight", f"{ours}out_proj.weight", (width, inner))
