"""Llama, and what was made after it (SmolLM2, TinyLlama): attention and gated feed-forwards.

Written and read as transformers' `LlamaForCausalLM` does, with RoPE slowed down as in Llama 3.1
(``rope_type: llama3``) or linearly.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

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

_DEFAULT_THETA = 1e4
_DEFAULT_EPS = 1e-6


_EXAMPLE = {
    "model_type": "llama",
    "hidden_size": 48,
    "vocab_size": 71,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


class Llama(Layout):
    """Full attention and SwiGLU in every block.

    Attributes:
        qk_norm: whether queries and keys are normed; families after Llama do.
        head_dim: default of the key; None: the width over the heads.
        max_context: default of ``max_position_embeddings``.
    """

    qk_norm: ClassVar[bool] = False
    head_dim: ClassVar[int | None] = None
    max_context: ClassVar[int] = 2048

    model_types = {"llama": "LlamaForCausalLM"}
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {**_EXAMPLE, "tie_word_embeddings": True},
        {**_EXAMPLE, "head_dim": 16, "num_key_value_heads": 1, "rms_norm_eps": 1e-4},
        {**_EXAMPLE, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {
            **_EXAMPLE,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        width = keys.number("hidden_size")
        eps = keys.real("rms_norm_eps", _DEFAULT_EPS)
        settings: dict[str, Scalar] = {"qk_norm": self.qk_norm}
        settings |= parts.heads(keys, width, head_dim=self.head_dim)
        settings |= parts.rope(keys, _DEFAULT_THETA, ("default", "linear", "llama3"))
        if self.qk_norm:
            settings["norm_eps"] = eps
        hidden = keys.number("intermediate_size")
        swiglu = ChannelMixerSpec(
            name="swiglu", config={"expansion": parts.expansion(hidden, width)}
        )
        block = BlockSpec(mixers=(MixerSpec(name="gqa", config=settings),), channel_mixer=swiglu)
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size"),
            blocks=(block,) * keys.number("num_hidden_layers", most=MOST_LAYERS),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
            max_context=keys.number("max_position_embeddings", self.max_context),
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        for index, block in enumerate(spec.blocks):
            only_mixer(block, index, "gqa")
            assert block.channel_mixer is not None
            if block.channel_mixer.name != "swiglu":
                raise UnsayableError(f"block {index} has {block.channel_mixer.name}")
        mixer = first_mixer(spec, "gqa")
        if mixer is None:
            raise UnsayableError("the stack has no block")
        channel = spec.blocks[0].channel_mixer
        assert channel is not None
        return {
            "model_type": next(iter(self.model_types)),
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "intermediate_size": sizes_of(channel, spec.d_model)["d_ff"],
            "hidden_act": "silu",
            "max_position_embeddings": spec.max_context or self.max_context,
            "rms_norm_eps": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
            "rope_parameters": parts.rope_keys(sizes_of(mixer, spec.d_model)),
            **parts.head_keys(mixer, spec.d_model),
            "head_dim": sizes_of(mixer, spec.d_model)["head_dim"],
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec)
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
            yield from parts.norm_pieces(width, theirs, ours)
            mixer, stem = block.mixers[0], f"{theirs}self_attn."
            yield from parts.attention_pieces(mixer, width, stem, f"{ours}mixers.0.")
            if self.qk_norm:
                yield from parts.qk_norm_pieces(mixer, width, stem, f"{ours}mixers.0.")
            yield from parts.swiglu_pieces(block, width, f"{theirs}mlp.", f"{ours}channel_mixer.")
