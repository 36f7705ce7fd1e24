"""Qwen3-Next: gated DeltaNet and now and then gated attention, experts in every block.

Attention has a gate for each channel of its heads and turns the first quarter of these channels.
Norms multiply by 1 + w, except those of gated DeltaNet's heads. Checkpoints hold what belongs to a
head together, ours what belongs to a projection; and ours turns channels i and i + H/2, so what
theirs turns (i and i + R/2 of the first R) changes places.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from archloop.blocks.ops.rope import turning_pairs
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
from archloop.stack.cost import channel_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, Scalar, StackSpec

_LAYER_TYPES = {"gated_deltanet": "linear_attention", "gqa": "full_attention"}
_TURNING = 0.25
_EXAMPLE = {
    "model_type": "qwen3_next",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
}


class Qwen3Next(Layout):
    """As the module says; transformers' `Qwen3NextForCausalLM`.

    Attributes:
        has_experts: of the family.
        has_dense: a configuration may have feed-forwards, in some blocks or in all.
        kv_heads, num_experts, top_k: defaults of ``num_key_value_heads``, ``num_experts`` and
            ``num_experts_per_tok``.
        inert_rope: what `rope_parameters` may say beside base and share, without effect on text.
    """

    has_experts: ClassVar[bool] = True
    has_dense: ClassVar[bool] = True
    kv_heads: ClassVar[int] = 2
    num_experts: ClassVar[int] = 512
    top_k: ClassVar[int] = 10
    inert_rope: ClassVar[tuple[str, ...]] = ()

    model_types = {"qwen3_next": "Qwen3NextForCausalLM"}
    keeps_float32 = ("A_log", "dt_bias")
    # A head that predicts further tokens.
    unbuilt = ("mtp.",)
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            **_EXAMPLE,
            "layer_types": None,
            "full_attention_interval": 2,
            "mlp_only_layers": [0],
            "linear_num_key_heads": 2,
        },
        {
            **_EXAMPLE,
            "num_key_value_heads": 3,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 3,
            "decoder_sparse_step": 2,
            "rms_norm_eps": 1e-4,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.5,
            },
        },
        {
            **_EXAMPLE,
            "layer_types": ["full_attention", "linear_attention"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
            },
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        width, eps = keys.number("hidden_size"), keys.real("rms_norm_eps", 1e-6)
        layer_types = _layer_types(keys)
        mixers = {
            "linear_attention": MixerSpec(name="gated_deltanet", config=_delta(keys, eps)),
            "full_attention": MixerSpec(name="gqa", config=self._attention(keys, width, eps)),
        }
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size"),
            blocks=tuple(
                BlockSpec(mixers=(mixers[layer_type],), channel_mixer=channel)
                for layer_type, channel in zip(
                    layer_types, self._channels(keys, width, layer_types), strict=True
                )
            ),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            norm_offset=True,
            max_context=keys.number("max_position_embeddings", 32_768),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        layer_types = [
            _LAYER_TYPES[only_mixer(block, index, *_LAYER_TYPES).name]
            for index, block in enumerate(spec.blocks)
        ]
        return {
            "model_type": next(iter(self.model_types)),
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "layer_types": layer_types,
            "max_position_embeddings": spec.max_context or 32_768,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            **_mixer_keys(spec),
            **self._channel_keys(spec),
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec)
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            yield from parts.norm_pieces(width, theirs, ours)
            values, inside = sizes_of(block.mixers[0], width), f"{ours}mixers.0."
            if block.mixers[0].name == "gqa":
                yield from _attention_pieces(values, width, f"{theirs}self_attn.", inside)
            else:
                stem = f"{theirs}linear_attn."
                yield from self.projection_pieces(values, width, stem, inside)
                yield from _delta_pieces(values, width, stem, inside)
            yield from _channel_pieces(block, width, f"{theirs}mlp.", f"{ours}channel_mixer.")

    def projection_pieces(
        self, values: dict[str, Any], width: int, theirs: str, ours: str
    ) -> Iterator[Piece]:
        """Gated DeltaNet's projections, of one key head after the other."""
        heads, values_per_key = values["num_heads"], values["values_per_key"]
        keys, head = heads // values_per_key, values["head_dim"]
        inner = values_per_key * head
        named = {
            "q": (f"{ours}conv_proj.weight", 0, head),
            "k": (f"{ours}conv_proj.weight", keys * head, head),
            "v": (f"{ours}conv_proj.weight", 2 * keys * head, inner),
            "z": (f"{ours}gate_proj.weight", 0, inner),
        }
        yield from _by_head(f"{theirs}in_proj_qkvz.weight", named, keys, width)
        target = f"{ours}decay_proj.weight"
        of_gates = {"b": (target, heads, values_per_key), "a": (target, 0, values_per_key)}
        yield from _by_head(f"{theirs}in_proj_ba.weight", of_gates, keys, width)

    def _attention(self, keys: Keys, width: int, eps: float) -> dict[str, Scalar]:
        return {
            "norm_eps": eps,
            "norm_offset": True,
            "channel_gate": True,
            **parts.heads(keys, width, default_kv_heads=self.kv_heads, head_dim=256),
            **parts.rope(keys, 1e4, turning=_TURNING, inert=self.inert_rope),
        }

    def _channels(self, keys: Keys, width: int, layer_types: list[str]) -> list[ChannelMixerSpec]:
        sparse = dense = None
        if self.has_experts:
            sparse = ChannelMixerSpec(name="moe", config=self._experts(keys, width))
        if self.has_dense:
            ratio = parts.expansion(keys.number("intermediate_size"), width)
            dense = ChannelMixerSpec(name="swiglu", config={"expansion": ratio})
        if sparse is None or dense is None:
            only_one = sparse or dense
            assert only_one is not None
            return [only_one] * len(layer_types)
        step, only = keys.number("decoder_sparse_step", 1), keys.get("mlp_only_layers", [])
        if not isinstance(only, list) or any(type(index) is not int for index in only):
            raise UserError(f"mlp_only_layers={only!r} must be a list of layers")
        return [
            dense if index in only or (index + 1) % step else sparse
            for index in range(len(layer_types))
        ]

    def _experts(self, keys: Keys, width: int) -> dict[str, Scalar]:
        keys.fixed("norm_topk_prob", True)
        hidden = keys.number("moe_intermediate_size", 512)
        shared = keys.number("shared_expert_intermediate_size", 512)
        return {
            # A softmax over all experts, of which the largest are made to sum to 1, is that of
            # the largest alone.
            "router": "granite",
            "use_bias": False,
            "num_experts": keys.number("num_experts", self.num_experts),
            "top_k": keys.number("num_experts_per_tok", self.top_k),
            "expansion": parts.expansion(hidden, width, "expert"),
            "shared_expansion": parts.expansion(shared, width, "shared expert"),
            "shared_gate": True,
        }

    def _channel_keys(self, spec: StackSpec) -> dict[str, Any]:
        channels = [block.channel_mixer for block in spec.blocks if block.channel_mixer is not None]
        built = {"swiglu": self.has_dense, "moe": self.has_experts}
        for index, channel in enumerate(channels):
            if not built.get(channel.name):
                raise UnsayableError(f"block {index} has {channel.name}")
        dense = next((channel for channel in channels if channel.name == "swiglu"), None)
        sparse = next((channel for channel in channels if channel.name == "moe"), None)
        found: dict[str, Any] = {}
        if self.has_dense:
            d_ff = sizes_of(dense, spec.d_model)["d_ff"] if dense else 4 * spec.d_model
            found["intermediate_size"] = d_ff
        if sparse is None:
            return found
        sizes = channel_config(sparse).sizes(spec.d_model)
        if "d_shared" not in sizes:
            raise UnsayableError("its experts have no shared one")
        if self.has_dense:
            dense_at = [index for index, channel in enumerate(channels) if channel.name == "swiglu"]
            found["mlp_only_layers"] = dense_at
        return found | {
            "moe_intermediate_size": sizes["d_expert"],
            "shared_expert_intermediate_size": sizes["d_shared"],
            "num_experts": sizes["num_experts"],
            "num_experts_per_tok": sizes["top_k"],
        }


# --- reading ------------------------------------------------------------------------------------


def _layer_types(keys: Keys) -> list[str]:
    num_layers = keys.number("num_hidden_layers", most=MOST_LAYERS)
    interval = keys.number("full_attention_interval", 4)
    layer_types = keys.get("layer_types")
    if layer_types is None:
        return [
            "linear_attention" if (index + 1) % interval else "full_attention"
            for index in range(num_layers)
        ]
    return parts.layer_types_of(layer_types, num_layers, _LAYER_TYPES.values())


def _delta(keys: Keys, eps: float) -> dict[str, Scalar]:
    head_dim = keys.number("linear_key_head_dim", 128)
    if keys.number("linear_value_head_dim", 128) != head_dim:
        raise UserError("linear_key_head_dim and linear_value_head_dim must be equal")
    num, values = keys.number("linear_num_key_heads", 16), keys.number("linear_num_value_heads", 32)
    if values % num:
        raise UserError(f"linear_num_key_heads={num} does not divide {values} value heads")
    return {
        "head_dim": head_dim,
        "num_key_heads": num,
        "values_per_key": values // num,
        "kernel": keys.number("linear_conv_kernel_dim", 4, most=64),
        "norm_eps": eps,
    }


# --- writing ------------------------------------------------------------------------------------


def _mixer_keys(spec: StackSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (delta := first_mixer(spec, "gated_deltanet")) is not None:
        values = sizes_of(delta, spec.d_model)
        if values["core"] != "recurrent":
            raise UnsayableError(f"gated_deltanet has core={values['core']!r}")
        found |= {
            "linear_key_head_dim": values["head_dim"],
            "linear_value_head_dim": values["head_dim"],
            "linear_num_key_heads": values["num_heads"] // values["values_per_key"],
            "linear_num_value_heads": values["num_heads"],
            "linear_conv_kernel_dim": values["kernel"],
        }
    attention = first_mixer(spec, "gqa")
    if attention is None:
        return found | {"num_attention_heads": 2, "num_key_value_heads": 2}
    values = sizes_of(attention, spec.d_model)
    share = {"partial_rotary_factor": values["rope_fraction"]}
    return found | {
        **parts.head_keys(attention, spec.d_model),
        "head_dim": values["head_dim"],
        "rope_parameters": parts.rope_keys(values) | share,
    }


# --- tensors ------------------------------------------------------------------------------------


def _by_head(
    name: str, named: dict[str, tuple[str, int, int]], num_heads: int, width: int
) -> Iterator[Piece]:
    """A matrix that holds, for one head after the other, some rows of each of ours.

    Args:
        name: in the checkpoint.
        named: our matrix, the row where its part begins, and its rows a head, in their order.
        num_heads: how many heads.
        width: of the input.
    """
    per_head = sum(num for _, _, num in named.values())
    shape = (num_heads * per_head, width)
    for head in range(num_heads):
        start = head * per_head
        for target, first, num in named.values():
            into = (slice(first + head * num, first + (head + 1) * num),)
            yield Piece(name, target, shape, source=(slice(start, start + num),), into=into)
            start += num


def _turned(values: dict[str, Any]) -> list[tuple[slice, slice]]:
    """Where channels of a head stand in theirs, and where in ours."""
    half = values["head_dim"] // 2
    turning = turning_pairs(values["rope_fraction"], half)
    pairs = [
        (slice(0, turning), slice(0, turning)),
        (slice(turning, 2 * turning), slice(half, half + turning)),
        (slice(2 * turning, turning + half), slice(turning, half)),
        (slice(turning + half, 2 * half), slice(half + turning, 2 * half)),
    ]
    return [(theirs, ours) for theirs, ours in pairs if theirs.start < theirs.stop]


def _attention_pieces(
    values: dict[str, Any], width: int, theirs: str, ours: str
) -> Iterator[Piece]:
    heads, num_kv, head = values["num_heads"], values["num_kv_heads"], values["head_dim"]
    qkv, gate = f"{ours}qkv_proj.weight", f"{ours}gate_proj.weight"
    name, shape = f"{theirs}q_proj.weight", (2 * heads * head, width)
    for index in range(heads):
        start, to = 2 * index * head, index * head
        for their, our in _turned(values):
            yield Piece(name, qkv, shape, source=(_at(their, start),), into=(_at(our, to),))
        source, into = slice(start + head, start + 2 * head), slice(to, to + head)
        yield Piece(name, gate, shape, source=(source,), into=(into,))
    name, shape, first = f"{theirs}k_proj.weight", (num_kv * head, width), heads * head
    for index in range(num_kv):
        start = index * head
        for their, our in _turned(values):
            source, into = _at(their, start), _at(our, first + start)
            yield Piece(name, qkv, shape, source=(source,), into=(into,))
    first += num_kv * head
    yield Piece(f"{theirs}v_proj.weight", qkv, shape, into=(slice(first, first + num_kv * head),))
    for letter in "qk":
        for their, our in _turned(values):
            name, target = f"{theirs}{letter}_norm.weight", f"{ours}{letter}_norm.weight"
            yield Piece(name, target, (head,), source=(their,), into=(our,))
    yield Piece(f"{theirs}o_proj.weight", f"{ours}out_proj.weight", (width, heads * head))


def _at(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)


def _delta_pieces(values: dict[str, Any], width: int, theirs: str, ours: str) -> Iterator[Piece]:
    """All of gated DeltaNet but its projections of the input."""
    heads, head = values["num_heads"], values["head_dim"]
    convolved = (2 * heads // values["values_per_key"] + heads) * head
    yield Piece(f"{theirs}conv1d.weight", f"{ours}conv", (convolved, 1, values["kernel"]))
    yield Piece(f"{theirs}A_log", f"{ours}log_rate", (heads,))
    yield Piece(f"{theirs}dt_bias", f"{ours}dt_bias", (heads,))
    yield Piece(f"{theirs}norm.weight", f"{ours}norm.weight", (head,))
    yield Piece(f"{theirs}out_proj.weight", f"{ours}out_proj.weight", (width, heads * head))


def _channel_pieces(block: BlockSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    channel = block.channel_mixer
    assert channel is not None
    if channel.name == "swiglu":
        yield from parts.swiglu_pieces(block, width, theirs, ours)
        return
    num = sizes_of(channel, width)["num_experts"]
    yield Piece(f"{theirs}gate.weight", f"{ours}router.weight", (num, width))
    yield from parts.expert_pieces(channel, width, f"{theirs}experts.", ours)
    yield from parts.shared_expert_pieces(channel, width, f"{theirs}shared_expert.", ours)
    yield Piece(f"{theirs}shared_expert_gate.weight", f"{ours}shared_gate.weight", (1, width))
