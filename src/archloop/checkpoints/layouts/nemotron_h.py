"""Nemotron-H: layers of one branch each, Mamba-2, attention without positions, or a feed-forward.

Feed-forwards are squared ReLU without a gate (arXiv 2504.03624), and so are experts, in models from
Nemotron 3 Nano on, which may work in a narrower stream (Nemotron 3 Super).
"""

from collections.abc import Callable, Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import (
    Layout,
    UnsayableError,
    first_mixer,
    sizes_of,
)
from archloop.checkpoints.layouts.mamba2 import UNCLAMPED, check_time_step_limit, mixer_pieces
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
_LAYER_TYPES = {
    "mamba2": "linear_attention",
    "gqa": "full_attention",
    "relu2": "mlp",
    "moe": "moe",
}
_EXAMPLE = {
    "model_type": "nemotron_h",
    "hidden_size": 48,
    "vocab_size": 71,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "ssm_state_size": 12,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 16,
    "time_step_min": UNCLAMPED,
    "pad_token_id": 0,
}
_SPARSE = {
    **_EXAMPLE,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 56,
    "routed_scaling_factor": 2.5,
}


class NemotronH(Layout):
    """As the module says; transformers' `NemotronHForCausalLM`."""

    model_types = {"nemotron_h": "NemotronHForCausalLM"}
    embedding = "backbone.embeddings.weight"
    keeps_float32 = ("A_log", "dt_bias", "e_score_correction_bias")
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "layers_block_type": ["full_attention", "linear_attention", "mlp"],
            "head_dim": 8,
            "n_groups": 4,
            "conv_kernel": 3,
            "mamba_num_heads": 12,
            "layer_norm_epsilon": 1e-4,
        },
        _SPARSE,
        {
            **_SPARSE,
            "layers_block_type": ["moe", "full_attention", "mlp", "moe", "linear_attention"],
            "n_routed_experts": 9,
            "n_group": 3,
            "topk_group": 2,
            "norm_topk_prob": False,
            "moe_latent_size": 32,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        _check_fixed(keys)
        width, eps = keys.number("hidden_size", 4096), keys.real("layer_norm_epsilon", 1e-5)
        make: dict[str, Callable[[], BlockSpec]] = {
            "linear_attention": lambda: BlockSpec(mixers=(_mamba2(keys, width, eps),)),
            "full_attention": lambda: BlockSpec(mixers=(_attention(keys, width),)),
            "mlp": lambda: BlockSpec(channel_mixer=_relu2(keys, width)),
            "moe": lambda: BlockSpec(channel_mixer=_experts(keys, width)),
        }
        layer_types = _layer_types(keys)
        made = {layer_type: make[layer_type]() for layer_type in sorted(set(layer_types))}
        # Sizes of layers that there are none of.
        keys.ignore("num_attention_heads num_key_value_heads head_dim attention_head_dim")
        keys.ignore("ssm_state_size mamba_num_heads mamba_head_dim n_groups conv_kernel")
        keys.ignore("intermediate_size n_routed_experts num_experts_per_tok")
        keys.ignore("moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size")
        keys.ignore("n_group topk_group routed_scaling_factor norm_topk_prob")
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 131_072),
            blocks=tuple(made[layer_type] for layer_type in layer_types),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            max_context=keys.number("max_position_embeddings", 4096),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types = [_layer_type_of(index, block) for index, block in enumerate(spec.blocks)]
        found: dict[str, Any] = {
            "model_type": "nemotron_h",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "layers_block_type": layer_types,
            "max_position_embeddings": spec.max_context or 4096,
            "layer_norm_epsilon": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "time_step_min": UNCLAMPED,
        }
        if (attention := first_mixer(spec, "gqa")) is not None:
            values = sizes_of(attention, spec.d_model)
            if values["rope_theta"] is not None:
                raise UnsayableError("its attention turns by position")
            found |= parts.head_keys(attention, spec.d_model) | {"head_dim": values["head_dim"]}
        if (mixer := first_mixer(spec, "mamba2")) is not None:
            values = sizes_of(mixer, spec.d_model)
            if values["core"] != "recurrent":
                raise UnsayableError(f"mamba2 has core={values['core']!r}")
            found |= {
                "ssm_state_size": values["state_dim"],
                "mamba_num_heads": values["num_heads"],
                "mamba_head_dim": values["head_dim"],
                "n_groups": values["num_groups"],
                "conv_kernel": values["kernel"],
            }
        return found | _channel_keys(spec)

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec, "backbone.norm_f.weight")
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"backbone.layers.{index}.", f"blocks.{index}."
            norm = "mixer_norm" if block.mixers else "channel_norm"
            yield Piece(f"{theirs}norm.weight", f"{ours}{norm}.weight", (width,))
            stem, inside = f"{theirs}mixer.", f"{ours}mixers.0."
            if block.channel_mixer is not None:
                yield from _channel_pieces(
                    block.channel_mixer, width, stem, f"{ours}channel_mixer."
                )
            elif block.mixers[0].name == "gqa":
                yield from parts.attention_pieces(block.mixers[0], width, stem, inside)
            else:
                yield from mixer_pieces(sizes_of(block.mixers[0], width), width, stem, inside)


def _check_fixed(keys: Keys) -> None:
    """Settings that are built in one way, and those that change nothing."""
    for key in ("use_bias", "mamba_proj_bias"):
        keys.fixed(key, False)
    keys.fixed("use_conv_bias", True)
    keys.fixed("mlp_hidden_act", "relu2")
    keys.fixed("mamba_hidden_act", "silu")
    keys.fixed("num_nextn_predict_layers", 0)
    check_time_step_limit(keys.get("time_step_limit", [0.0, float("inf")]))
    # The first time steps, how sums are cut, precision, and `expand`, which the heads replace.
    keys.ignore("time_step_min time_step_max time_step_floor chunk_size mamba_ssm_cache_dtype")
    keys.ignore("rescale_prenorm_residual residual_in_fp32 num_logits_to_keep expand rms_norm_eps")
    keys.ignore("norm_eps")
    # Positions, which attention has none of, though configurations on the hub name their base.
    keys.ignore("rope_theta partial_rotary_factor")
    # The shared expert has a width of its own, whatever their number, and when it runs is for
    # several devices to decide. Layers that predict further tokens there are none of.
    keys.ignore("n_shared_experts moe_shared_expert_overlap mtp_layers_block_type")


def _layer_types(keys: Keys) -> list[str]:
    """What each layer is, from a list or from a pattern of letters."""
    pattern, listed = keys.get("hybrid_override_pattern"), keys.get("layers_block_type")
    if listed is None and isinstance(pattern, str):
        listed = [_LETTERS.get(letter, letter) for letter in pattern]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_LAYERS:
        raise UserError("layers_block_type must list the type of each layer")
    layer_types = [_OLDER.get(layer_type, layer_type) for layer_type in map(str, listed)]
    for layer_type in layer_types:
        if layer_type not in _LAYER_TYPES.values():
            raise UserError(
                f"layers_block_type has {layer_type!r}; supported: "
                f"{', '.join(_LAYER_TYPES.values())}"
            )
    num_layers = keys.number("num_hidden_layers", len(layer_types))
    if num_layers != len(layer_types):
        raise UserError(f"num_hidden_layers={num_layers} and {len(layer_types)} layers are listed")
    return layer_types


def _layer_type_of(index: int, block: BlockSpec) -> str:
    names = [mixer.name for mixer in block.mixers]
    names += [] if block.channel_mixer is None else [block.channel_mixer.name]
    if len(names) != 1 or names[0] not in _LAYER_TYPES:
        raise UnsayableError(f"block {index} is {' and '.join(names) or 'empty'}, not one branch")
    return _LAYER_TYPES[names[0]]


def _attention(keys: Keys, width: int) -> MixerSpec:
    # The name in configurations from before transformers had the family.
    head_dim = keys.number("attention_head_dim", 128)
    heads = parts.heads(keys, width, default_kv_heads=8, head_dim=head_dim)
    return MixerSpec(name="gqa", config={"qk_norm": False, "rope_theta": None, **heads})


def _mamba2(keys: Keys, width: int, eps: float) -> MixerSpec:
    heads, head_dim = keys.number("mamba_num_heads", 128), keys.number("mamba_head_dim", 64)
    config: dict[str, Scalar] = {
        "head_dim": head_dim,
        "state_dim": keys.number("ssm_state_size", 128),
        "num_groups": keys.number("n_groups", 8),
        "kernel": keys.number("conv_kernel", 4, most=64),
        "expansion": heads * head_dim / width,
        "norm_eps": eps,
    }
    return MixerSpec(name="mamba2", config=config)


def _relu2(keys: Keys, width: int) -> ChannelMixerSpec:
    ratio = parts.expansion(keys.number("intermediate_size", 21_504), width)
    return ChannelMixerSpec(name="relu2", config={"expansion": ratio})


def _experts(keys: Keys, width: int) -> ChannelMixerSpec:
    hidden = keys.number("moe_intermediate_size", 7688)
    shared = keys.number("moe_shared_expert_intermediate_size", 7688)
    config: dict[str, Scalar] = {
        "router": "kimi",
        "activation": "relu2",
        "num_experts": keys.number("n_routed_experts", 8),
        "top_k": keys.number("num_experts_per_tok", 2),
        "expansion": parts.expansion(hidden, width, "expert"),
        "shared_expansion": parts.expansion(shared, width, "shared expert"),
        "num_groups": keys.number("n_group", 1),
        "top_groups": keys.number("topk_group", 1),
        "normalize": keys.boolean("norm_topk_prob", True),
        "routed_scale": keys.real("routed_scaling_factor", 1.0),
    }
    if keys.get("moe_latent_size") is not None:
        latent = keys.number("moe_latent_size")
        config["latent_ratio"] = parts.expansion(latent, width, "latent")
    return ChannelMixerSpec(name="moe", config=config)


def _channel_keys(spec: StackSpec) -> dict[str, Any]:
    channels = parts.channel_mixers(spec)
    dense, sparse = channels.get("relu2"), channels.get("moe")
    found: dict[str, Any] = {}
    if dense is not None:
        found["intermediate_size"] = sizes_of(dense, spec.d_model)["d_ff"]
    if sparse is None:
        return found
    sizes = sizes_of(sparse, spec.d_model)
    if "d_shared" not in sizes:
        raise UnsayableError("its experts have no shared one")
    return found | {
        "n_routed_experts": sizes["num_experts"],
        "num_experts_per_tok": sizes["top_k"],
        "moe_intermediate_size": sizes["d_expert"],
        "moe_shared_expert_intermediate_size": sizes["d_shared"],
        "moe_latent_size": sizes.get("d_latent"),
        "n_group": sizes["num_groups"],
        "topk_group": sizes["top_groups"],
        "norm_topk_prob": sizes["normalize"],
        "routed_scaling_factor": sizes["routed_scale"],
    }


def _channel_pieces(
    channel: ChannelMixerSpec, width: int, theirs: str, ours: str
) -> Iterator[Piece]:
    sizes = sizes_of(channel, width)
    if channel.name == "relu2":
        d_ff = sizes["d_ff"]
        for name, shape in (("up_proj", (d_ff, width)), ("down_proj", (width, d_ff))):
            yield Piece(f"{theirs}{name}.weight", f"{ours}{name}.weight", shape)
        return
    num = sizes["num_experts"]
    yield Piece(f"{theirs}gate.weight", f"{ours}router.weight", (num, width))
    yield Piece(f"{theirs}gate.e_score_correction_bias", f"{ours}expert_bias", (num,))
    yield from parts.expert_pieces(channel, width, f"{theirs}experts.", ours)
    yield from parts.shared_expert_pieces(channel, width, f"{theirs}shared_experts.", ours)
    if (latent := sizes.get("d_latent")) is not None:
        into, out = f"{theirs}fc1_latent_proj.weight", f"{theirs}fc2_latent_proj.weight"
        yield Piece(into, f"{ours}latent_in.weight", (latent, width))
        yield Piece(out, f"{ours}latent_out.weight", (width, latent))
