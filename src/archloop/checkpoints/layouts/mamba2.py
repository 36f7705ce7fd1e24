"""Mamba-2: blocks of one mixer and no channel mixer (arXiv 2405.21060).

One projection of the checkpoint holds the gate, what is convolved and the time steps; ours holds
the gate apart, since a block that borrows another's features keeps a gate of its own.
"""

import math
from collections.abc import Iterator
from typing import Any

from archloop.checkpoints.keys import MOST_LAYERS, Keys
from archloop.checkpoints.layouts.base import Layout, UnsayableError, first_mixer, sizes_of
from archloop.checkpoints.pieces import Piece
from archloop.errors import UserError
from archloop.stack.spec import BlockSpec, MixerSpec, StackSpec

UNCLAMPED = 1e-30
"""For ``time_step_min``, in families where transformers lifts time steps to it in a pass over
several tokens and not in a step. Here, as in the models' own code, there is no such limit."""
_EXAMPLE = {
    "model_type": "mamba2",
    "hidden_size": 32,
    "vocab_size": 71,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 12,
    "n_groups": 2,
    "chunk_size": 16,
    "pad_token_id": 0,
}


class Mamba2(Layout):
    """As the module says; transformers' `Mamba2ForCausalLM`."""

    model_types = {"mamba2": "Mamba2ForCausalLM"}
    embedding = "backbone.embeddings.weight"
    keeps_float32 = ("A_log", "dt_bias")
    examples = (
        _EXAMPLE,
        {**_EXAMPLE, "n_groups": 1, "conv_kernel": 3, "tie_word_embeddings": True},
        {**_EXAMPLE, "expand": 3, "num_heads": 12, "layer_norm_epsilon": 1e-4},
    )

    def to_spec(self, keys: Keys) -> StackSpec:
        # The first time steps, and how sums are cut into chunks.
        keys.ignore("time_step_min time_step_max time_step_floor time_step_rank chunk_size")
        keys.ignore("rescale_prenorm_residual residual_in_fp32")
        # transformers 4 writes these two as well. Its norm comes after the gate whatever it writes.
        keys.ignore("norm_before_gate")
        keys.fixed("rms_norm", True)
        keys.fixed("use_bias", False)
        keys.fixed("use_conv_bias", True)
        check_time_step_limit(keys.get("time_step_limit", [0.0, math.inf]))
        width, eps = keys.number("hidden_size", 4096), keys.real("layer_norm_epsilon", 1e-5)
        heads, head_dim = keys.number("num_heads", 128), keys.number("head_dim", 64)
        expand = keys.number("expand", 2)
        if expand * width != heads * head_dim:
            raise UserError(
                f"expand * hidden_size = {expand * width} is not num_heads * head_dim = "
                f"{heads * head_dim}"
            )
        mixer = MixerSpec(
            name="mamba2",
            config={
                "head_dim": head_dim,
                "state_dim": keys.number("state_size", 128),
                "num_groups": keys.number("n_groups", 8),
                "kernel": keys.number("conv_kernel", 4, most=64),
                "expansion": expand,
                "norm_eps": eps,
            },
        )
        return StackSpec(
            d_model=width,
            vocab_size=keys.number("vocab_size", 32_768),
            blocks=(BlockSpec(mixers=(mixer,)),)
            * keys.number("num_hidden_layers", 64, most=MOST_LAYERS),
            tie_embeddings=keys.boolean("tie_word_embeddings", False),
            norm_eps=eps,
        )

    def from_spec(self, spec: StackSpec) -> dict[str, Any]:
        for index, block in enumerate(spec.blocks):
            if [m.name for m in block.mixers] != ["mamba2"] or block.channel_mixer is not None:
                raise UnsayableError(f"block {index} is no single mamba2 mixer")
        mixer = first_mixer(spec, "mamba2")
        if mixer is None:
            raise UnsayableError("the stack has no block")
        sizes = sizes_of(mixer, spec.d_model)
        if sizes["d_inner"] % spec.d_model or sizes["core"] != "recurrent":
            raise UnsayableError(
                f"mamba2 has expansion={sizes['expansion']} and core={sizes['core']!r}"
            )
        return {
            "model_type": "mamba2",
            "hidden_size": spec.d_model,
            "vocab_size": spec.vocab_size,
            "num_hidden_layers": spec.num_blocks,
            "num_heads": sizes["num_heads"],
            "head_dim": sizes["head_dim"],
            "state_size": sizes["state_dim"],
            "n_groups": sizes["num_groups"],
            "conv_kernel": sizes["kernel"],
            "expand": sizes["d_inner"] // spec.d_model,
            "layer_norm_epsilon": spec.norm_eps,
            "tie_word_embeddings": spec.tie_embeddings,
        }

    def pieces(self, spec: StackSpec, variant: str) -> Iterator[Piece]:
        width = spec.d_model
        yield from self.ends(spec, "backbone.norm_f.weight")
        for index, block in enumerate(spec.blocks):
            theirs, ours = f"backbone.layers.{index}.", f"blocks.{index}."
            yield Piece(f"{theirs}norm.weight", f"{ours}mixer_norm.weight", (width,))
            sizes = sizes_of(block.mixers[0], width)
            yield from mixer_pieces(sizes, width, f"{theirs}mixer.", f"{ours}mixers.0.")


def mixer_pieces(sizes: dict[str, Any], width: int, theirs: str, ours: str) -> Iterator[Piece]:
    """A Mamba-2 mixer's tensors, whose input projection is two of ours."""
    inner, heads = sizes["d_inner"], sizes["num_heads"]
    convolved = inner + 2 * sizes["num_groups"] * sizes["state_dim"]
    name, shape = f"{theirs}in_proj.weight", (inner + convolved + heads, width)
    gate, rest = (slice(0, inner),), (slice(inner, None),)
    yield Piece(name, f"{ours}query_proj.weight", shape, source=gate)
    yield Piece(name, f"{ours}feature_proj.weight", shape, source=rest)
    yield Piece(f"{theirs}conv1d.weight", f"{ours}conv", (convolved, 1, sizes["kernel"]))
    yield Piece(f"{theirs}conv1d.bias", f"{ours}conv_bias", (convolved,))
    for part, target in (("A_log", "log_rate"), ("dt_bias", "dt_bias"), ("D", "skip")):
        yield Piece(f"{theirs}{part}", f"{ours}{target}", (heads,))
    if sizes["out_norm"] != "none":
        yield Piece(f"{theirs}norm.weight", f"{ours}norm", (inner,))
    yield Piece(f"{theirs}out_proj.weight", f"{ours}out_proj.weight", (width, inner))


def check_time_step_limit(limits: Any) -> None:
    """Time steps are not clamped here; transformers clamps them in one of its two forms only."""
    wanted = ([0.0, math.inf], [0.0, "Infinity"], [0.0, {"__float__": "Infinity"}])
    if not isinstance(limits, list | tuple) or list(limits) not in wanted:
        raise UserError(f"time_step_limit={limits!r} is not supported; only [0, Infinity] is")
