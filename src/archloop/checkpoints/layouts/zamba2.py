"""Zamba2: Mamba-2 throughout, and now and then one of a few shared transformers beside it.

The transformer reads the stream and the embedding; what it makes is added to what the Mamba-2 of
its layer reads (arXiv 2411.15242). Here that layer is two blocks: a side block and the Mamba-2.
Transformers repeat: all uses of one have its weights, and adapters of their own.
"""

import math
from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts import parts
from archloop.checkpoints.layouts.base import Layout, UnsayableError, first_mixer, sizes_of
from archloop.checkpoints.layouts.mamba2 import UNCLAMPED, check_time_step_limit, mixer_pieces
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_MAMBA, _HYBRID = "linear_attention", "hybrid"
_OLDER = {"mamba": _MAMBA}
_GATED_NORM_EPS = 1e-5
"""Of the norm inside Mamba-2, which no configuration says."""
_EXAMPLE = {
    "model_type": "zamba2",
    "hidden_size": 48,
    "vocab_size": 71,
    "num_hidden_layers": 4,
    "layers_block_type": [_HYBRID, _HYBRID, _MAMBA, _HYBRID],
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "mamba_d_state": 12,
    "mamba_ngroups": 2,
    "n_mamba_heads": 12,
    "chunk_size": 16,
    "time_step_min": UNCLAMPED,
    "adapter_rank": 5,
    "num_mem_blocks": 2,
    "pad_token_id": 0,
}


class Zamba2(Layout):
    """As the module says; transformers' `Zamba2ForCausalLM`."""

    model_types = {"zamba2": "Zamba2ForCausalLM"}
    keeps_float32 = ("A_log", "dt_bias")
    example_std = 0.12
    examples = (
        _EXAMPLE,
        {
            **_EXAMPLE,
            "layers_block_type": [_MAMBA, _HYBRID, _MAMBA, _HYBRID],
            "num_mem_blocks": 1,
            "use_shared_attention_adapter": True,
            "use_mem_rope": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
            "mamba_ngroups": 1,
            "mamba_d_conv": 3,
            "mamba_expand": 3,
            "rms_norm_eps": 1e-4,
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        _check_fixed(keys)
        width, eps = keys.number("hidden_size", 2560), keys.real("rms_norm_eps", 1e-5)
        mamba = BlockSpec(mixers=(MixerSpec(name="mamba2", config=_mamba2(keys, width)),))
        side = _side(keys, width)
        repeat = keys.number("num_mem_blocks", 1, most=MOST_LAYERS)
        blocks: list[BlockSpec] = []
        sides: list[int] = []
        for layer_type in _layer_types(keys):
            if layer_type == _HYBRID:
                lender = sides[len(sides) % repeat] if len(sides) >= repeat else None
                sides.append(len(blocks))
                blocks.append(side if lender is None else _taking(side, lender))
            blocks.append(mamba)
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 32_000),
            blocks=tuple(blocks),
            tie_embeddings=True,
            norm_eps=eps,
            max_context=keys.number("max_position_embeddings", 4096),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types = [_HYBRID if before is not None else _MAMBA for before, _ in _layers(spec)]
        mixer = first_mixer(spec, "mamba2")
        if mixer is None:
            raise UnsayableError("the stack has no block")
        values = sizes_of(mixer, spec.d_model)
        if values["d_inner"] % spec.d_model or values["core"] != "recurrent":
            raise UnsayableError(f"mamba2 has expansion={values['expansion']}")
        found: dict[str, Any] = {
            "model_type": "zamba2",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": len(layer_types),
            "layers_block_type": layer_types,
            "max_position_embeddings": spec.max_context or 4096,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": True,
            "mamba_expand": values["d_inner"] // spec.d_model,
            "mamba_d_state": values["state_dim"],
            "mamba_ngroups": values["num_groups"],
            "mamba_d_conv": values["kernel"],
            "n_mamba_heads": values["num_heads"],
            "time_step_min": UNCLAMPED,
        }
        side = next((block for block in spec.blocks if block.side), None)
        return found if side is None else found | _side_keys(spec, side)

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        yield from self.ends(spec, "model.final_layernorm.weight")
        width, at = spec.d_model, 0
        stems: dict[int, str] = {}
        for layer, (side, mamba) in enumerate(_layers(spec)):
            theirs = f"model.layers.{layer}."
            if side is not None:
                assert side.channel_mixer is not None
                source = side.channel_mixer.weights_from
                stems[at] = f"{theirs}shared_transformer." if source is None else stems[source]
                yield from _side_pieces(side, width, stems[at], at, len(stems) - 1)
                yield Piece(f"{theirs}linear.weight", f"blocks.{at}.side_proj.weight", (width,) * 2)
                theirs, at = f"{theirs}mamba_decoder.", at + 1
            norm = f"{theirs}input_layernorm.weight"
            yield Piece(norm, f"blocks.{at}.mixer_norm.weight", (width,))
            sizes = sizes_of(mamba.mixers[0], width)
            yield from mixer_pieces(sizes, width, f"{theirs}mamba.", f"blocks.{at}.mixers.0.")
            at += 1


def _check_fixed(keys: Keys) -> None:
    """Settings that are built in one way, and those that change nothing."""
    for key in ("add_bias_linear", "use_long_context"):
        keys.fixed(key, False)
    for key in ("use_conv_bias", "use_shared_mlp_adapter"):
        keys.fixed(key, True)
    keys.fixed("hidden_act", "gelu")
    check_time_step_limit(keys.get("time_step_limit", [0.0, math.inf]))
    # The first time steps, how sums are cut, which kernels run, and what only a call asks for.
    keys.ignore("time_step_min time_step_max time_step_floor chunk_size")
    keys.ignore("use_mem_eff_path num_logits_to_keep")
    # What these once said, other keys do.
    keys.ignore("kv_channels num_query_groups ffn_hidden_size")
    # Without it transformers shares nothing at all, though the configuration counts transformers.
    keys.fixed("tie_word_embeddings", True)


def _layer_types(keys: Keys) -> list[str]:
    num_layers = keys.number("num_hidden_layers", 54, most=MOST_LAYERS)
    listed = keys.get("layers_block_type", keys.get("layer_types"))
    if isinstance(listed, list):
        listed = [_OLDER.get(str(layer_type), layer_type) for layer_type in listed]
    layer_types = parts.layer_types_of(listed, num_layers, (_MAMBA, _HYBRID), "layers_block_type")
    keys.fixed(
        "hybrid_layer_ids",
        [at for at, layer_type in enumerate(layer_types) if layer_type == _HYBRID],
    )
    return layer_types


def _mamba2(keys: Keys, width: int) -> dict[str, Scalar]:
    heads, expand = keys.number("n_mamba_heads", 8), keys.number("mamba_expand", 2)
    if expand * width % heads:
        raise UserError(f"n_mamba_heads={heads} does not divide {expand * width}")
    keys.fixed("mamba_headdim", expand * width // heads)
    return {
        "head_dim": expand * width // heads,
        "state_dim": keys.number("mamba_d_state", 64),
        "num_groups": keys.number("mamba_ngroups", 1),
        "kernel": keys.number("mamba_d_conv", 4, most=64),
        "expansion": expand,
        "norm_eps": _GATED_NORM_EPS,
    }


def _side(keys: Keys, width: int) -> BlockSpec:
    """A shared transformer at its first use."""
    heads = keys.number("num_attention_heads", 32)
    kv_heads = keys.number("num_key_value_heads", heads)
    if heads % kv_heads or 2 * width % (2 * heads):
        raise UserError(
            f"num_attention_heads={heads} must divide hidden_size={width} and be a multiple of "
            f"num_key_value_heads={kv_heads}"
        )
    head_dim = 2 * width // heads
    # Files say again what follows from other keys.
    keys.fixed("attention_hidden_size", 2 * width)
    for key in ("attention_head_dim", "head_dim"):
        keys.fixed(key, head_dim)
    rank = keys.number("adapter_rank", 128)
    in_attention = keys.boolean("use_shared_attention_adapter", False)
    if in_attention and kv_heads != heads:
        raise UserError("use_shared_attention_adapter needs as many KV heads as query heads")
    turns = keys.boolean("use_mem_rope", False)
    rope = parts.rope(keys, 1e4)
    config: dict[str, Scalar] = {
        "head_dim": head_dim,
        "num_heads": heads,
        "queries_per_kv": heads // kv_heads,
        "qk_norm": False,
        "scale": (head_dim / 2) ** -0.5,
        "beside_embedding": True,
        "adapter_rank": rank if in_attention else 0,
        **(rope if turns else {"rope_theta": None}),
    }
    ratio = parts.expansion(keys.number("intermediate_size", 4 * width), width)
    geglu = {"expansion": ratio, "gelu": "exact", "adapter_rank": rank}
    return BlockSpec(
        mixers=(MixerSpec(name="gqa", config=config),),
        channel_mixer=ChannelMixerSpec(name="geglu", config=geglu),
        side=True,
    )


def _taking(side: BlockSpec, lender: int) -> BlockSpec:
    """A further use of the transformer that was first used in block `lender`."""
    assert side.channel_mixer is not None
    return side.model_copy(
        update={
            "mixers": (side.mixers[0].model_copy(update={"weights_from": lender}),),
            "channel_mixer": side.channel_mixer.model_copy(update={"weights_from": lender}),
            "norms_from": lender,
        }
    )


def _layers(spec: StackSpec) -> Iterator[tuple[BlockSpec | None, BlockSpec]]:
    """Each layer as its side block, if it has one, and its Mamba-2.

    Raises:
        UnsayableError: the stack is not made of these.
    """
    side: BlockSpec | None = None
    for index, block in enumerate(spec.blocks):
        names = [mixer.name for mixer in block.mixers]
        channel = None if block.channel_mixer is None else block.channel_mixer.name
        if block.side and side is None and (names, channel) == (["gqa"], "geglu"):
            side = block
        elif not block.side and (names, channel) == (["mamba2"], None):
            yield side, block
            side = None
        else:
            raise UnsayableError(f"block {index} is no mamba2, and no transformer beside one")
    if side is not None:
        raise UnsayableError("the last block is beside none")


def _side_keys(spec: StackSpec, side: BlockSpec) -> dict[str, Any]:
    assert side.channel_mixer is not None
    mixer = sizes_of(side.mixers[0], spec.d_model)
    channel = sizes_of(side.channel_mixer, spec.d_model)
    own = [block for block in spec.blocks if block.side and block.norms_from is None]
    turns = mixer["rope_theta"] is not None
    found = {
        "num_attention_heads": mixer["num_heads"],
        "num_key_value_heads": mixer["num_kv_heads"],
        "intermediate_size": channel["d_ff"],
        "adapter_rank": channel["adapter_rank"],
        "use_shared_attention_adapter": mixer["adapter_rank"] > 0,
        "num_mem_blocks": len(own),
        "use_mem_rope": turns,
    }
    return found | ({"rope_parameters": parts.rope_keys(mixer)} if turns else {})


def _side_pieces(side: BlockSpec, width: int, theirs: str, block: int, use: int) -> Iterator[Piece]:
    """A use of a transformer: its adapters, and at its first use all else.

    Args:
        side: the block.
        width: of the model.
        theirs: where the checkpoint keeps the transformer.
        block: index of the block.
        use: how many uses of any transformer come before.
    """
    mixer, channel = side.mixers[0], side.channel_mixer
    assert channel is not None
    attention, feed = f"{theirs}self_attn.", f"{theirs}feed_forward."
    ours, rank = f"blocks.{block}.", sizes_of(channel, width)["adapter_rank"]
    hidden = 2 * sizes_of(channel, width)["d_ff"]
    if side.norms_from is None:
        yield Piece(f"{theirs}input_layernorm.weight", f"{ours}mixer_norm.weight", (2 * width,))
        yield Piece(f"{theirs}pre_ff_layernorm.weight", f"{ours}channel_norm.weight", (width,))
        yield from parts.attention_pieces(
            mixer, width, attention, f"{ours}mixers.0.", reads=2 * width
        )
        name, shape = f"{feed}gate_up_proj.weight", (hidden, width)
        yield Piece(name, f"{ours}channel_mixer.gate_up_proj.weight", shape)
        name, shape = f"{feed}down_proj.weight", (width, hidden // 2)
        yield Piece(name, f"{ours}channel_mixer.down_proj.weight", shape)
    where, inside = f"{feed}gate_up_proj_adapter_list.{use}.", f"{ours}channel_mixer.adapter."
    yield Piece(f"{where}0.weight", f"{inside}down.weight", (rank, width))
    yield Piece(f"{where}1.weight", f"{inside}up.0.weight", (hidden, rank))
    if sizes_of(mixer, width)["adapter_rank"]:
        inside = f"{ours}mixers.0.adapter."
        for part, letter in enumerate("qkv"):
            where = f"{attention}linear_{letter}_adapter_list.{use}."
            rows = (slice(part * rank, (part + 1) * rank),)
            yield Piece(f"{where}0.weight", f"{inside}down.weight", (rank, 2 * width), into=rows)
            yield Piece(f"{where}1.weight", f"{inside}up.{part}.weight", (2 * width, rank))
