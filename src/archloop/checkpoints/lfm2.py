"""Hugging Face configurations of LFM2 and LFM2-MoE, to and from a stack spec.

Two generations of `config.json` exist: the first (transformers 4.54 to 4.57) writes
``full_attn_idxs``, ``block_ff_dim`` and ``rope_theta``, the second ``layer_types``,
``intermediate_size`` and ``rope_parameters``. Both are read with
the meaning that transformers gives them; the second is written. A key outside the lists below is
refused: it could change results.

    >>> from archloop.stack import presets
    >>> config = from_spec(presets.load("lfm2-350m"))
    >>> to_spec(config) == presets.load("lfm2-350m")
    True
"""

import sys
from collections.abc import Mapping
from typing import Any

from archloop.errors import UserError
from archloop.stack.cost import channel_config, mixer_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARCHITECTURES = {"lfm2": "Lfm2ForCausalLM", "lfm2_moe": "Lfm2MoeForCausalLM"}

UNDERSTOOD = _keys(
    "model_type architectures vocab_size hidden_size intermediate_size block_ff_dim "
    "num_hidden_layers num_attention_heads num_key_value_heads head_dim norm_eps "
    "max_position_embeddings tie_word_embeddings tie_embedding conv_bias conv_L_cache "
    "layer_types full_attn_idxs rope_theta theta rope_scaling rope_parameters "
    "partial_rotary_factor dtype torch_dtype"
)
DENSE_ONLY = _keys("block_multiple_of block_ffn_dim_multiplier block_auto_adjust_ff_dim")
MOE_ONLY = _keys(
    "moe_intermediate_size num_dense_layers num_experts num_experts_per_tok use_expert_bias "
    "norm_topk_prob routed_scaling_factor"
)
# Bookkeeping, training and generation, and first-generation keys that no released LFM2
# implementation reads: nothing that a forward pass depends on.
INERT = _keys(
    "bos_token_id eos_token_id pad_token_id use_cache initializer_range transformers_version "
    "_name_or_path output_hidden_states output_attentions output_router_logits return_dict "
    "chunk_size_feed_forward id2label label2id problem_type num_labels router_aux_loss_coef "
    "unsloth_version unsloth_fixed "
    "block_dim conv_dim conv_dim_out num_heads block_norm_eps block_use_xavier_init "
    "conv_use_xavier_init block_mlp_init_scale block_out_init_scale"
)
FIXED: Mapping[str, Any] = {
    "is_encoder_decoder": False,
    "block_use_swiglu": True,
    "use_pos_enc": True,
}
"""Keys with one value under which this architecture is what we build."""

_MOST = {"num_hidden_layers": 4096, "num_experts": 4096, "conv_L_cache": 64}
"""Bounds on what a file can make us list before its tensors are looked at, and on the kernel."""
_DEFAULT_THETA = 1e6
_DEFAULT_EPS = 1e-5


def to_spec(config: Mapping[str, Any]) -> StackSpec:
    """The spec that a `config.json` describes.

    Raises:
        UserError: not an LFM2 or LFM2-MoE configuration, a key that is not understood, values that
            contradict each other, or sizes that cannot be built. Names the key.
    """
    config = {k: v for k, v in config.items() if v is not None or k == "block_ffn_dim_multiplier"}
    model_type = _check_keys(config)
    width, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    kinds = _layer_kinds(config, moe=model_type == "lfm2_moe")
    conv, attention = _conv(config), _attention(config, width, heads)
    channels = _channels(config, width, len(kinds), moe=model_type == "lfm2_moe")
    blocks = tuple(
        BlockSpec(mixers=(conv if kind == "conv" else attention,), channel_mixer=channel)
        for kind, channel in zip(kinds, channels, strict=True)
    )
    tie = config.get("tie_embedding", config.get("tie_word_embeddings", True))
    mixer_config(attention).sizes(width)
    return StackSpec(
        d_model=width,
        vocab_size=_number(config, "vocab_size"),
        blocks=blocks,
        tie_embeddings=_boolean("tie_word_embeddings", tie),
        norm_eps=_real(config, "norm_eps", _DEFAULT_EPS),
        max_context=_number(config, "max_position_embeddings", 128_000),
    )


def from_spec(spec: StackSpec) -> dict[str, Any]:
    """The `config.json` (second generation, without token ids and dtype) of a spec.

    Raises:
        UserError: the spec is not of the LFM2 family; names the first block that is not, so that
            the caller can choose our own layout.
    """
    config = _draft(spec)
    again = to_spec(config)
    for index, (want, have) in enumerate(zip(spec.blocks, again.blocks, strict=True)):
        if _settled(want, spec.d_model) != _settled(have, spec.d_model):
            raise _unsayable(f"block {index} is {want.model_dump(exclude_defaults=True)}")
    for field in ("norm_eps", "embedding_multiplier", "logits_divisor", "tie_embeddings"):
        if getattr(spec, field) != getattr(again, field):
            raise _unsayable(f"{field}={getattr(spec, field)}")
    return config


# --- reading ------------------------------------------------------------------------------------


def _check_keys(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"model_type={model_type!r}: only {', '.join(ARCHITECTURES)} checkpoints can be loaded"
        )
    known = UNDERSTOOD | INERT | FIXED.keys() | (MOE_ONLY if "moe" in model_type else DENSE_ONLY)
    unknown = sorted(config.keys() - known)
    if unknown:
        raise UserError(
            f"config key {unknown[0]!r} (value {config[unknown[0]]!r}) is not understood for "
            f"{model_type} and could change results; remove it only if it is known to change none"
        )
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"config key {key!r} is {config[key]!r}; only {value!r} is supported")
    names = config.get("architectures", [ARCHITECTURES[model_type]])
    if names != [ARCHITECTURES[model_type]]:
        raise UserError(
            f"architectures={names!r} does not fit model_type={model_type!r}; "
            f"expected [{ARCHITECTURES[model_type]!r}]"
        )
    return model_type


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config key {key!r} must be a positive whole number, not {value!r}")
    if value > _MOST.get(key, 1 << 30):
        raise UserError(f"config key {key!r} is {value}; at most {_MOST.get(key, 1 << 30)}")
    return value


def _real(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise UserError(f"config key {key!r} must be a number above 0, not {value!r}")
    return float(value)


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"config key {key!r} must be true or false, not {value!r}")
    return value


def _layer_kinds(config: Mapping[str, Any], moe: bool) -> list[str]:
    num_layers = _number(config, "num_hidden_layers")
    kinds, indices = config.get("layer_types"), config.get("full_attn_idxs")
    if indices is not None:
        if not isinstance(indices, list) or any(
            type(index) is not int or not 0 <= index < num_layers for index in indices
        ):
            raise UserError(f"full_attn_idxs={indices!r}: must list layers 0 to {num_layers - 1}")
        listed = ["full_attention" if i in indices else "conv" for i in range(num_layers)]
        if kinds is not None and kinds != listed:
            raise UserError("layer_types and full_attn_idxs contradict each other")
        kinds = listed
    if kinds is None:
        if moe:
            raise UserError("config key 'layer_types' is missing; lfm2_moe has no default for it")
        # What transformers does with a dense configuration that names neither.
        return ["full_attention"] * num_layers
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise UserError(f"layer_types must list num_hidden_layers={num_layers} layers")
    for kind in kinds:
        if kind not in ("conv", "full_attention"):
            raise UserError(f"layer_types has {kind!r}; known: 'conv', 'full_attention'")
    return kinds


def _conv(config: Mapping[str, Any]) -> MixerSpec:
    settings: dict[str, Scalar] = {"kernel": _number(config, "conv_L_cache", 3)}
    if _boolean("conv_bias", config.get("conv_bias", False)):
        settings["bias"] = True
    return MixerSpec(name="short_conv", config=settings)


def _attention(config: Mapping[str, Any], width: int, heads: int) -> MixerSpec:
    kv_heads = _number(config, "num_key_value_heads", 8)
    if heads % kv_heads:
        raise UserError(
            f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}"
        )
    head_dim = _number(config, "head_dim", width // heads)
    settings: dict[str, Scalar] = {"head_dim": head_dim, "queries_per_kv": heads // kv_heads}
    if head_dim * heads != width:
        settings["num_heads"] = heads
    if (theta := _rope_theta(config)) != _DEFAULT_THETA:
        settings["rope_theta"] = theta
    if (eps := _real(config, "norm_eps", _DEFAULT_EPS)) != _DEFAULT_EPS:
        settings["norm_eps"] = eps
    return MixerSpec(name="gqa", config=settings)


def _rope_theta(config: Mapping[str, Any]) -> float:
    """The rotary base, which may be said in four places that must agree."""
    said: dict[str, Any] = {key: config[key] for key in ("rope_theta", "theta") if key in config}
    for key in ("rope_parameters", "rope_scaling"):
        settings = config.get(key, {})
        if not isinstance(settings, dict):
            raise UserError(f"config key {key!r} must be an object, not {settings!r}")
        for name, value in settings.items():
            if name == "rope_theta":
                said[f"{key}.rope_theta"] = value
            elif name not in ("rope_type", "type", "partial_rotary_factor"):
                raise UserError(f"config key '{key}.{name}' is not understood")
        kind = settings.get("rope_type", settings.get("type", "default"))
        if kind != "default":
            raise UserError(f"{key}: rope_type={kind!r} is not supported; only 'default' is")
        if settings.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{key}.partial_rotary_factor is not supported; only 1.0 is")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config key 'partial_rotary_factor' is not supported; only 1.0 is")
    bases = [_real(said, key, _DEFAULT_THETA) for key in said] or [_DEFAULT_THETA]
    if any(base != bases[0] for base in bases):
        raise UserError(f"the rotary base is said twice, differently: {said}")
    if bases[0] <= 1:
        raise UserError(f"rope_theta={bases[0]!r} must be a number above 1")
    return bases[0]


def _channels(
    config: Mapping[str, Any], width: int, num_layers: int, moe: bool
) -> list[ChannelMixerSpec]:
    dense = ChannelMixerSpec(
        name="swiglu", config={"expansion": _expansion(_dense_width(config, moe), width, "dense")}
    )
    if not moe:
        return [dense] * num_layers
    num_dense = config.get("num_dense_layers", 2)
    if isinstance(num_dense, bool) or not isinstance(num_dense, int) or num_dense < 0:
        raise UserError(f"config key 'num_dense_layers' must be 0 or more, not {num_dense!r}")
    expert_width = _number(config, "moe_intermediate_size", 1792)
    num_experts = _number(config, "num_experts", 32)
    top_k = _number(config, "num_experts_per_tok", 4)
    if top_k > num_experts:
        raise UserError(f"num_experts_per_tok={top_k} exceeds num_experts={num_experts}")
    settings: dict[str, Scalar] = {
        "num_experts": num_experts,
        "top_k": top_k,
        "expansion": _expansion(expert_width, width, "expert"),
    }
    if not _boolean("use_expert_bias", config.get("use_expert_bias", True)):
        settings["use_bias"] = False
    if not _boolean("norm_topk_prob", config.get("norm_topk_prob", True)):
        settings["normalize"] = False
    if (scale := _real(config, "routed_scaling_factor", 1.0)) != 1.0:
        settings["routed_scale"] = scale
    sparse = ChannelMixerSpec(name="moe", config=settings)
    return [dense if index < num_dense else sparse for index in range(num_layers)]


def _dense_width(config: Mapping[str, Any], moe: bool) -> int:
    """The dense FFN's width after the auto-adjust rule (Lfm2MLP; absent in the MoE class)."""
    if moe:
        if "block_ff_dim" in config:
            raise UserError("config key 'block_ff_dim' has no meaning for lfm2_moe")
        return _number(config, "intermediate_size", 7168)
    key = "block_ff_dim" if "block_ff_dim" in config else "intermediate_size"
    width = _number(config, key, 12288)
    if not _boolean("block_auto_adjust_ff_dim", config.get("block_auto_adjust_ff_dim", True)):
        return width
    width = int(2 * width / 3)
    key = "block_ffn_dim_multiplier"
    if config.get(key, 1.0) is None:
        return width  # The rounding belongs to the multiplier.
    multiplier = _real(config, key, 1.0)
    multiple = _number(config, "block_multiple_of", 256)
    return multiple * -(-int(multiplier * width) // multiple)


def _expansion(hidden: int, width: int, what: str) -> float:
    if hidden % 8:
        raise UserError(f"the {what} FFN width {hidden} is not a multiple of 8")
    return hidden / width


# --- writing ------------------------------------------------------------------------------------


def _draft(spec: StackSpec) -> dict[str, Any]:
    """The configuration if every block is like the first of its kind; `from_spec` checks."""
    kinds = []
    for index, block in enumerate(spec.blocks):
        if block.channel_mixer is None or len(block.mixers) != 1:
            raise _unsayable(f"block {index} must have one mixer and a channel mixer")
        kinds.append({"short_conv": "conv", "gqa": "full_attention"}.get(block.mixers[0].name, ""))
        if not kinds[-1] or block.channel_mixer.name not in ("swiglu", "moe"):
            raise _unsayable(f"block {index} has {block.mixers[0].name}/{block.channel_mixer.name}")
    config: dict[str, Any] = {
        "hidden_size": spec.d_model,
        "vocab_size": spec.vocab_size,
        "num_hidden_layers": spec.num_blocks,
        "layer_types": kinds,
        "max_position_embeddings": spec.max_context or 128_000,
        "norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tie_embeddings,
        **_draft_mixers(spec),
        **_draft_channels(spec),
    }
    config["architectures"] = [ARCHITECTURES[config["model_type"]]]
    return config


def _draft_mixers(spec: StackSpec) -> dict[str, Any]:
    first = {block.mixers[0].name: block.mixers[0] for block in reversed(spec.blocks)}
    conv = mixer_config(first.get("short_conv", MixerSpec(name="short_conv"))).model_dump()
    one_head: dict[str, Scalar] = {"num_heads": 1, "queries_per_kv": 1}
    settings = mixer_config(first.get("gqa", MixerSpec(name="gqa", config=one_head)))
    sizes, values = settings.sizes(spec.d_model), settings.model_dump()
    if values["rope_theta"] is None:
        raise _unsayable("gqa has rope_theta=None")
    head_dim = values["head_dim"]
    return {
        "conv_L_cache": conv["kernel"],
        "conv_bias": conv["bias"],
        "num_attention_heads": sizes["num_heads"],
        "num_key_value_heads": sizes["num_kv_heads"],
        "rope_parameters": {"rope_theta": values["rope_theta"], "rope_type": "default"},
        **({"head_dim": head_dim} if head_dim * sizes["num_heads"] != spec.d_model else {}),
    }


def _draft_channels(spec: StackSpec) -> dict[str, Any]:
    channels = [block.channel_mixer for block in spec.blocks if block.channel_mixer is not None]
    dense = next((c for c in channels if c.name == "swiglu"), None)
    sparse = next((c for c in channels if c.name == "moe"), None)
    d_ff = channel_config(dense).sizes(spec.d_model)["d_ff"] if dense else 8 * spec.d_model
    if sparse is None:
        return {
            "model_type": "lfm2",
            "intermediate_size": d_ff,
            "block_auto_adjust_ff_dim": False,
        }
    values, sizes = channel_config(sparse).model_dump(), channel_config(sparse).sizes(spec.d_model)
    return {
        "model_type": "lfm2_moe",
        "intermediate_size": d_ff,
        "moe_intermediate_size": sizes["d_expert"],
        "num_dense_layers": sum(c.name == "swiglu" for c in channels),
        "num_experts": sizes["num_experts"],
        "num_experts_per_tok": sizes["top_k"],
        "use_expert_bias": values["use_bias"],
        "norm_topk_prob": values["normalize"],
        "routed_scaling_factor": values["routed_scale"],
    }


def _settled(block: BlockSpec, width: int) -> dict[str, Any]:
    """A block with defaults filled in and sizes worked out; what only training reads left out."""
    (mixer,), channel = block.mixers, block.channel_mixer
    assert channel is not None
    found: dict[str, Any] = {"post_norms": block.post_norms, "m": block.residual_multiplier}
    found |= {"sharing": (mixer.weights_from, mixer.state_from, channel.weights_from)}
    found |= {"multipliers": (mixer.input_multiplier, mixer.multiplier, channel.multiplier)}
    for part, config in ((mixer, mixer_config(mixer)), (channel, channel_config(channel))):
        values = config.model_dump(exclude={"bias_update_rate", "num_heads", "expansion"})
        found[part.name] = values | config.sizes(width)
    return found


def _unsayable(what: str) -> UserError:
    return UserError(
        f"this stack is not of the LFM2 family ({what}); save it with layout='archloop'"
    )
