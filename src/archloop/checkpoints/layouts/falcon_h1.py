"""Falcon-H1: Mamba-2 and attention side by side in every block, then a gated feed-forward.

Embeddings, what each branch is given and gives, keys, the parts of Mamba-2's projection, the
feed-forward's gate and output and the logits each have a factor of their own (arXiv 2507.22448).
"""

import math
from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import Layout, UnsayableError, sizes_of
from archloop.checkpoints.layouts.mamba2 import check_time_step_limit, mixer_pieces
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.cost import channel_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_SSM = ("gate", "x", "b", "c", "dt")
"""Our factors in the order of ``ssm_multipliers``."""
_EXAMPLE = {
    "model_type": "falcon_h1",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "mamba_d_ssm": 72,
    "mamba_n_heads": 6,
    "mamba_d_head": 12,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 16,
    "pad_token_id": 0,
    "embedding_multiplier": 5.6,
    "lm_head_multiplier": 0.039,
    "attention_in_multiplier": 0.75,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.39,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.23,
    "ssm_multipliers": [0.35, 0.25, 0.4, 0.5, 0.3],
    "mlp_multipliers": [0.88, 0.58],
}


class FalconH1(Layout):
    """As the module says; transformers' `FalconH1ForCausalLM`."""

    model_types = {"falcon_h1": "FalconH1ForCausalLM"}
    keeps_float32 = ("A_log", "dt_bias")
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_n_groups": 1,
            "mamba_d_conv": 3,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
            "tie_word_embeddings": True,
        },
        {
            **_EXAMPLE,
            "mamba_rms_norm": True,
            "mamba_d_ssm": None,
            "mamba_d_head": "auto",
            "rms_norm_eps": 1e-4,
            "ssm_multipliers": None,
            "mlp_multipliers": None,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        _check_fixed(keys)
        width, eps = keys.number("hidden_size", 4096), keys.real("rms_norm_eps", 1e-5)
        gate, down = _factors(keys, "mlp_multipliers", 2)
        ratio = parts.expansion(keys.number("intermediate_size", 14_336), width)
        config: dict[str, Scalar] = {"expansion": ratio, "gate_multiplier": gate}
        block = BlockSpec(
            mixers=(_mamba2(keys, width, eps), _attention(keys, width)),
            channel_mixer=ChannelMixerSpec(name="swiglu", config=config, multiplier=down),
        )
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 128_000),
            blocks=(block,) * keys.number("num_hidden_layers", 32, most=MOST_LAYERS),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            embedding_multiplier=keys.real("embedding_multiplier", 1.0),
            logits_divisor=1 / keys.real("lm_head_multiplier", 1.0),
            max_context=keys.number("max_position_embeddings", 8192),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        for index, block in enumerate(spec.blocks):
            names = [mixer.name for mixer in block.mixers]
            channel = block.channel_mixer
            if names != ["mamba2", "gqa"] or channel is None or channel.name != "swiglu":
                raise UnsayableError(f"block {index} is not mamba2 beside gqa, then swiglu")
        if not spec.blocks:
            raise UnsayableError("the stack has no block")
        (mamba2, attention), channel = spec.blocks[0].mixers, spec.blocks[0].channel_mixer
        assert channel is not None
        feed_forward: Any = channel_config(channel)
        return {
            "model_type": "falcon_h1",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "intermediate_size": feed_forward.sizes(spec.d_model)["d_ff"],
            "max_position_embeddings": spec.max_context or 8192,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "embedding_multiplier": spec.embedding_multiplier,
            "lm_head_multiplier": parts.solved(
                lambda factor: 1 / factor, spec.logits_divisor, 1 / spec.logits_divisor
            ),
            "mlp_multipliers": [feed_forward.gate_multiplier, channel.multiplier],
            **_mamba2_keys(mamba2, spec.d_model),
            **_attention_keys(attention, spec.d_model),
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec, "model.final_layernorm.weight")
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            names = ("input_layernorm", "pre_ff_layernorm")
            yield from parts.norm_pieces(width, theirs, ours, names)
            mamba2, attention = block.mixers
            sizes = sizes_of(mamba2, width)
            yield from mixer_pieces(sizes, width, f"{theirs}mamba.", f"{ours}mixers.0.")
            stem = f"{theirs}self_attn."
            yield from parts.attention_pieces(attention, width, stem, f"{ours}mixers.1.")
            stem = f"{theirs}feed_forward."
            yield from parts.swiglu_pieces(block, width, stem, f"{ours}channel_mixer.")


def _check_fixed(keys: Keys) -> None:
    """Settings that are built in one way, and those that change nothing."""
    keys.fixed("mamba_conv_bias", True)
    for key in ("mamba_proj_bias", "projectors_bias"):
        keys.fixed(key, False)
    keys.fixed("mamba_use_mlp", True)
    keys.fixed("attn_layer_indices", None)
    check_time_step_limit(keys.get("time_step_limit", [0.0, math.inf]))
    # How sums are cut, how many logits a call of theirs returns, and a ratio for the feed-forward,
    # whose width `intermediate_size` says outright.
    keys.ignore("mamba_chunk_size num_logits_to_keep layer_types layers_block_type")
    keys.ignore("mlp_expansion_factor")


def _factors(keys: Keys, key: str, num: int) -> list[float]:
    """A list of so many factors above 0; all 1 where it is not given."""
    values = keys.get(key, [1.0] * num)
    right = isinstance(values, list) and len(values) == num
    if not right or not all(isinstance(v, int | float) and 0 < v < math.inf for v in values):
        raise UserError(f"config key {key!r} must be {num} numbers above 0, not {values!r}")
    return [float(value) for value in values]


def _mamba2(keys: Keys, width: int, eps: float) -> MixerSpec:
    expand = keys.number("mamba_expand", 2)
    # Absent, it is transformers' default; null, it follows from the width.
    inner = expand * width if keys.is_null("mamba_d_ssm") else keys.number("mamba_d_ssm", 1024)
    heads = keys.number("mamba_n_heads", 128)
    head_dim = keys.get("mamba_d_head", "auto")
    head_dim = inner // heads if head_dim == "auto" else keys.number("mamba_d_head")
    if head_dim * heads != inner:
        raise UserError(
            f"mamba_n_heads={heads} of mamba_d_head={head_dim!r} are not mamba_d_ssm={inner} wide"
        )
    before = keys.boolean("mamba_norm_before_gate", True)
    normed = keys.boolean("mamba_rms_norm", False)
    config: dict[str, Scalar] = {
        "head_dim": head_dim,
        "state_dim": keys.number("mamba_d_state", 256),
        "num_groups": keys.number("mamba_n_groups", 1),
        "kernel": keys.number("mamba_d_conv", 4, most=64),
        "expansion": inner / width,
        "norm_eps": eps,
        "out_norm": ("before_gate" if before else "after_gate") if normed else "none",
    }
    factors = zip(_SSM, _factors(keys, "ssm_multipliers", len(_SSM)), strict=True)
    config |= {f"{name}_multiplier": factor for name, factor in factors}
    return MixerSpec(
        name="mamba2",
        config=config,
        input_multiplier=keys.real("ssm_in_multiplier", 1.0),
        multiplier=keys.real("ssm_out_multiplier", 1.0),
    )


def _mamba2_keys(mixer: MixerSpec, width: int) -> dict[str, Any]:
    values = sizes_of(mixer, width)
    if values["core"] != "recurrent":
        raise UnsayableError(f"mamba2 has core={values['core']!r}")
    return {
        "mamba_d_ssm": values["d_inner"],
        "mamba_n_heads": values["num_heads"],
        "mamba_d_head": values["head_dim"],
        "mamba_d_state": values["state_dim"],
        "mamba_n_groups": values["num_groups"],
        "mamba_d_conv": values["kernel"],
        "mamba_rms_norm": values["out_norm"] != "none",
        "mamba_norm_before_gate": values["out_norm"] != "after_gate",
        "ssm_multipliers": [values[f"{name}_multiplier"] for name in _SSM],
        "ssm_in_multiplier": mixer.input_multiplier,
        "ssm_out_multiplier": mixer.multiplier,
    }


def _attention(keys: Keys, width: int) -> MixerSpec:
    config: dict[str, Scalar] = {"qk_norm": False, **parts.heads(keys, width)}
    config |= parts.rope(keys, 1e4)
    head_dim = config["head_dim"]
    assert isinstance(head_dim, int)
    if (factor := keys.real("key_multiplier", 1.0)) != 1.0:
        # A factor on keys is one on their products with queries.
        config["scale"] = factor * head_dim**-0.5
    return MixerSpec(
        name="gqa",
        config=config,
        input_multiplier=keys.real("attention_in_multiplier", 1.0),
        multiplier=keys.real("attention_out_multiplier", 1.0),
    )


def _attention_keys(mixer: MixerSpec, width: int) -> dict[str, Any]:
    values = sizes_of(mixer, width)
    root = values["head_dim"] ** -0.5
    scale = values["scale"] or root
    factor = parts.solved(lambda number: number * root, scale, scale / root)
    return {
        "rope_parameters": parts.rope_keys(values),
        **parts.head_keys(mixer, width),
        "head_dim": values["head_dim"],
        "key_multiplier": factor,
        "attention_in_multiplier": mixer.input_multiplier,
        "attention_out_multiplier": mixer.multiplier,
    }
