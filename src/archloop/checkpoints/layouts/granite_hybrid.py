"""Granite 4.0-H: Mamba-2 and now and then attention, a gated feed-forward in every block.

Embeddings, queries by keys, branches and logits each have a factor of their own, and attention
carries no positions unless the configuration asks for RoPE. In the larger models the feed-forward
is the shared expert beside others of which a router chooses.
"""

from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import (
    Layout,
    UnsayableError,
    first_mixer,
    layer_types,
    sizes_of,
)
from archloop.checkpoints.layouts.mamba2 import check_time_step_limit, mixer_pieces
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LAYER_TYPES = {"mamba2": "linear_attention", "gqa": "full_attention"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
_NOWHERE = (None, "nope")
"""Values of ``position_embedding_type`` that say that attention has no positions."""
_EXAMPLE = {
    "model_type": "granitemoehybrid",
    "hidden_size": 48,
    "vocab_size": 71,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "shared_intermediate_size": 40,
    "num_local_experts": 0,
    "mamba_n_heads": 8,
    "mamba_d_state": 12,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "pad_token_id": 0,
    "embedding_multiplier": 12,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 8,
}


class GraniteHybrid(Layout):
    """As the module says; transformers' `GraniteMoeHybridForCausalLM`."""

    model_types = {"granitemoehybrid": "GraniteMoeHybridForCausalLM"}
    keeps_float32 = ("A_log", "dt_bias")
    examples = (
        {**_EXAMPLE, "tie_word_embeddings": True},
        {
            **_EXAMPLE,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention", "linear_attention"],
            "position_embedding_type": "rope",
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
            "mamba_n_groups": 1,
            "mamba_d_conv": 3,
            "mamba_expand": 3,
            "rms_norm_eps": 1e-4,
            "residual_multiplier": 1.0,
        },
        {
            **_EXAMPLE,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "intermediate_size": 24,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        _check_fixed(keys)
        width, eps = keys.number("hidden_size", 4096), keys.real("rms_norm_eps", 1e-6)
        mixers = {
            "linear_attention": MixerSpec(name="mamba2", config=_mamba2(keys, width, eps)),
            "full_attention": MixerSpec(name="gqa", config=_attention(keys, width)),
        }
        channel = _channel(keys, width)
        factor = keys.real("residual_multiplier", 1.0)
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 32_000),
            blocks=tuple(
                BlockSpec(
                    mixers=(mixers[layer_type],), channel_mixer=channel, residual_multiplier=factor
                )
                for layer_type in _layer_types(keys)
            ),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            embedding_multiplier=keys.real("embedding_multiplier", 1.0),
            logits_divisor=keys.real("logits_scaling", 1.0),
            max_context=keys.number("max_position_embeddings", 2048),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        channel = next((block.channel_mixer for block in spec.blocks if block.channel_mixer), None)
        sparse = channel is not None and channel.name == "moe"
        listed = layer_types(spec, _LAYER_TYPES, "moe" if sparse else "swiglu")
        assert channel is not None
        found: dict[str, Any] = {
            "model_type": "granitemoehybrid",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": listed,
            **_channel_keys(channel, spec.d_model),
            "max_position_embeddings": spec.max_context or 2048,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "embedding_multiplier": spec.embedding_multiplier,
            "logits_scaling": spec.logits_divisor,
            "residual_multiplier": spec.blocks[0].residual_multiplier,
        }
        found |= _mamba2_keys(first_mixer(spec, "mamba2"), spec.d_model)
        return found | _attention_keys(first_mixer(spec, "gqa"), spec.d_model)

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec)
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            yield from parts.norm_pieces(width, theirs, ours)
            mixer, inside = block.mixers[0], f"{ours}mixers.0."
            if mixer.name == "gqa":
                yield from parts.attention_pieces(mixer, width, f"{theirs}self_attn.", inside)
            else:
                yield from mixer_pieces(sizes_of(mixer, width), width, f"{theirs}mamba.", inside)
            yield from _channel_pieces(block, width, theirs, f"{ours}channel_mixer.")


def _check_fixed(keys: Keys) -> None:
    """Settings that are built in one way, and those that change nothing."""
    keys.fixed("mamba_conv_bias", True)
    keys.fixed("mamba_proj_bias", False)
    keys.fixed("normalization_function", "rmsnorm")
    check_time_step_limit(keys.get("time_step_limit", [0.0, float("inf")]))
    # How sums are cut, and how weights are drawn.
    keys.ignore("mamba_chunk_size init_method")


def _layer_types(keys: Keys) -> list[str]:
    num_layers = keys.number("num_hidden_layers", 32, most=MOST_LAYERS)
    listed = keys.get("layer_types", keys.get("layers_block_type"))
    if listed is None:
        return ["linear_attention"] * num_layers
    if isinstance(listed, list):
        listed = [_OLDER.get(layer_type, layer_type) for layer_type in map(str, listed)]
    return parts.layer_types_of(listed, num_layers, _LAYER_TYPES.values())


def _channel(keys: Keys, width: int) -> ChannelMixerSpec:
    """A gated feed-forward, or experts with a shared one of that width."""
    d_ff = keys.number("shared_intermediate_size", 1024)
    num_experts = keys.count("num_local_experts", 8)
    if not num_experts:
        # Of experts, which there are none of.
        keys.ignore("intermediate_size num_experts_per_tok")
        ratio = parts.expansion(d_ff, width)
        return ChannelMixerSpec(name="swiglu", config={"expansion": ratio})
    ratio = parts.expansion(keys.number("intermediate_size", 11_008), width, "expert")
    config: dict[str, Scalar] = {
        "router": "granite",
        "use_bias": False,
        "num_experts": num_experts,
        "top_k": keys.number("num_experts_per_tok", 2),
        "expansion": ratio,
        "shared_expansion": parts.expansion(d_ff, width, "shared expert"),
    }
    return ChannelMixerSpec(name="moe", config=config)


def _channel_keys(channel: ChannelMixerSpec, width: int) -> dict[str, Any]:
    sizes = sizes_of(channel, width)
    if channel.name == "swiglu":
        return {"shared_intermediate_size": sizes["d_ff"], "num_local_experts": 0}
    if "d_shared" not in sizes:
        raise UnsayableError("its experts have no shared one")
    return {
        "shared_intermediate_size": sizes["d_shared"],
        "num_local_experts": sizes["num_experts"],
        "num_experts_per_tok": sizes["top_k"],
        "intermediate_size": sizes["d_expert"],
    }


def _channel_pieces(block: BlockSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    channel = block.channel_mixer
    assert channel is not None
    sizes, shared = sizes_of(channel, width), ""
    if channel.name == "moe":
        stem, num, d_ff = f"{theirs}block_sparse_moe.", sizes["num_experts"], sizes["d_expert"]
        yield Piece(f"{stem}router.layer.weight", f"{ours}router.weight", (num, width))
        yield Piece(f"{stem}input_linear.weight", f"{ours}gate_up", (num, 2 * d_ff, width))
        yield Piece(f"{stem}output_linear.weight", f"{ours}down", (num, width, d_ff))
        shared = "shared."
    d_ff, stem = sizes["d_shared" if shared else "d_ff"], f"{theirs}shared_mlp."
    into, out = f"{ours}{shared}gate_up_proj.weight", f"{ours}{shared}down_proj.weight"
    yield Piece(f"{stem}input_linear.weight", into, (2 * d_ff, width))
    yield Piece(f"{stem}output_linear.weight", out, (width, d_ff))


def _mamba2(keys: Keys, width: int, eps: float) -> dict[str, Scalar]:
    heads, expand = keys.number("mamba_n_heads", 128), keys.number("mamba_expand", 2)
    head_dim = keys.get("mamba_d_head", "auto")
    if head_dim == "auto":
        head_dim = expand * width // heads
    if head_dim * heads != expand * width:
        raise UserError(
            f"mamba_n_heads={heads} of mamba_d_head={head_dim!r} are not mamba_expand * "
            f"hidden_size = {expand * width} wide"
        )
    return {
        "head_dim": head_dim,
        "state_dim": keys.number("mamba_d_state", 256),
        "num_groups": keys.number("mamba_n_groups", 1),
        "kernel": keys.number("mamba_d_conv", 4, most=64),
        "expansion": expand,
        "norm_eps": eps,
    }


def _mamba2_keys(mixer: MixerSpec | None, width: int) -> dict[str, Any]:
    if mixer is None:
        # transformers holds this key against the width even where no layer is Mamba-2.
        return {"mamba_n_heads": 1}
    values = sizes_of(mixer, width)
    if values["d_inner"] % width or values["core"] != "recurrent":
        raise UnsayableError(f"mamba2 has expansion={values['expansion']}, core={values['core']!r}")
    return {
        "mamba_n_heads": values["num_heads"],
        "mamba_d_head": values["head_dim"],
        "mamba_d_state": values["state_dim"],
        "mamba_n_groups": values["num_groups"],
        "mamba_d_conv": values["kernel"],
        "mamba_expand": values["d_inner"] // width,
    }


def _attention(keys: Keys, width: int) -> dict[str, Scalar]:
    settings: dict[str, Scalar] = {"qk_norm": False, **parts.heads(keys, width)}
    rope = parts.rope(keys, 1e4)
    embedding = keys.get("position_embedding_type")
    if embedding not in (*_NOWHERE, "rope"):
        raise UserError(
            f"position_embedding_type={embedding!r} is not supported; only 'rope' or 'nope'"
        )
    settings |= {"rope_theta": None} if embedding in _NOWHERE else rope
    return settings | {"scale": keys.real("attention_multiplier", 1.0)}


def _attention_keys(mixer: MixerSpec | None, width: int) -> dict[str, Any]:
    if mixer is None:
        return {"num_attention_heads": 1, "num_key_value_heads": 1}
    values = sizes_of(mixer, width)
    scale = values["scale"] or values["head_dim"] ** -0.5
    found = {**parts.head_keys(mixer, width), "attention_multiplier": scale}
    if values["rope_theta"] is None:
        return found | {"position_embedding_type": None}
    return found | {"position_embedding_type": "rope", "rope_parameters": parts.rope_keys(values)}
