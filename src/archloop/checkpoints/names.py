"""Which tensor of a checkpoint is which part of which tensor of a decoder.

A checkpoint and a decoder cut the same numbers differently: LFM2 checkpoints have q, k and v apart
where we have one matrix, and a tensor per expert where we have one for all. Each `Piece` names one
checkpoint tensor and the view of a decoder tensor that it fills, so that loading is ``view.copy_``
and saving is the view itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archloop.stack.cost import channel_config, mixer_config
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, StackSpec

_COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it was given."""

ExpertLayout = Literal["separate", "fused"]
"""One tensor per expert (as on the hub), or one for all (as in transformers 5's memory)."""


@dataclass(frozen=True)
class Piece:
    """One tensor of a checkpoint.

    Attributes:
        name: in the checkpoint.
        target: name of the decoder's parameter or buffer.
        rows: the part of it along the first dimension; None for all.
        expert: index along an expert dimension that comes before the rows.
        shape: in the checkpoint.
    """

    name: str
    target: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    expert: int | None = None

    def view(self, target: Tensor) -> Tensor:
        """The part of the decoder's tensor that this piece is, in the checkpoint's shape."""
        if self.expert is not None:
            target = target[self.expert]
        if self.rows is not None:
            target = target[self.rows[0] : self.rows[1]]
        return target.view(self.shape)


def own(decoder: Decoder) -> list[Piece]:
    """Pieces of our own layout: every parameter and persistent buffer under its own name, once."""
    return [Piece(name, name, tuple(tensor.shape)) for name, tensor in stored(decoder).items()]


def stored(decoder: Decoder) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a shared one once, under its first name.

    Blocks that were compiled one by one have the names that they had before.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in decoder.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name.replace(f"{_COMPILED}.", "")] = tensor
    return found


def unwrapped(decoder: nn.Module) -> Decoder:
    """The decoder inside what `torch.compile` or a data-parallel wrapper made of it.

    Raises:
        ValueError: there is none.
    """
    inner: Any = decoder
    while not isinstance(inner, Decoder):
        inner = getattr(inner, _COMPILED, None) or getattr(inner, "module", None)
        if inner is None:
            raise ValueError(f"{type(decoder).__name__} is no Decoder and holds none")
    return inner


def lfm2(spec: StackSpec, experts: ExpertLayout) -> Iterator[Piece]:
    """Pieces of the Hugging Face layout of a spec of the LFM2 family."""
    width = spec.d_model
    yield Piece("model.embed_tokens.weight", "embedding.weight", (spec.vocab_size, width))
    yield Piece("model.embedding_norm.weight", "norm.weight", (width,))
    if not spec.tie_embeddings:
        yield Piece("lm_head.weight", "head.weight", (spec.vocab_size, width))
    for index, block in enumerate(spec.blocks):
        theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
        yield Piece(f"{theirs}operator_norm.weight", f"{ours}mixer_norm.weight", (width,))
        yield Piece(f"{theirs}ffn_norm.weight", f"{ours}channel_norm.weight", (width,))
        if block.mixers[0].name == "gqa":
            yield from _attention(block, width, f"{theirs}self_attn.", f"{ours}mixers.0.")
        else:
            yield from _conv(block, width, f"{theirs}conv.", f"{ours}mixers.0.")
        theirs, ours = f"{theirs}feed_forward.", f"{ours}channel_mixer."
        assert block.channel_mixer is not None
        if block.channel_mixer.name == "moe":
            yield from _moe(block, width, theirs, ours, experts)
        else:
            yield from _swiglu(block, width, theirs, ours)


def _attention(block: BlockSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    sizes = mixer_config(block.mixers[0]).sizes(width)
    head_dim = sizes["head_dim"]
    q, kv = sizes["num_heads"] * head_dim, sizes["num_kv_heads"] * head_dim
    start = 0
    for letter, rows in (("q", q), ("k", kv), ("v", kv)):
        yield Piece(
            f"{theirs}{letter}_proj.weight",
            f"{ours}qkv_proj.weight",
            (rows, width),
            rows=(start, start + rows),
        )
        start += rows
    yield Piece(f"{theirs}out_proj.weight", f"{ours}out_proj.weight", (width, q))
    for letter in "qk":
        name = f"{theirs}{letter}_layernorm.weight"
        yield Piece(name, f"{ours}{letter}_norm.weight", (head_dim,))


def _conv(block: BlockSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    values = mixer_config(block.mixers[0]).model_dump()
    yield Piece(f"{theirs}conv.weight", f"{ours}conv", (width, 1, values["kernel"]))
    yield Piece(f"{theirs}in_proj.weight", f"{ours}in_proj.weight", (3 * width, width))
    yield Piece(f"{theirs}out_proj.weight", f"{ours}out_proj.weight", (width, width))
    if values["bias"]:
        yield Piece(f"{theirs}conv.bias", f"{ours}conv_bias", (width,))
        yield Piece(f"{theirs}in_proj.bias", f"{ours}in_proj.bias", (3 * width,))
        yield Piece(f"{theirs}out_proj.bias", f"{ours}out_proj.bias", (width,))


def _swiglu(block: BlockSpec, width: int, theirs: str, ours: str) -> Iterator[Piece]:
    assert block.channel_mixer is not None
    d_ff = channel_config(block.channel_mixer).sizes(width)["d_ff"]
    fused = f"{ours}gate_up_proj.weight"
    yield Piece(f"{theirs}w1.weight", fused, (d_ff, width), rows=(0, d_ff))
    yield Piece(f"{theirs}w3.weight", fused, (d_ff, width), rows=(d_ff, 2 * d_ff))
    yield Piece(f"{theirs}w2.weight", f"{ours}down_proj.weight", (width, d_ff))


def _moe(
    block: BlockSpec, width: int, theirs: str, ours: str, experts: ExpertLayout
) -> Iterator[Piece]:
    assert block.channel_mixer is not None
    config = channel_config(block.channel_mixer)
    sizes = config.sizes(width)
    num, d_ff = sizes["num_experts"], sizes["d_expert"]
    yield Piece(f"{theirs}gate.weight", f"{ours}router.weight", (num, width))
    if config.model_dump()["use_bias"]:
        yield Piece(f"{theirs}expert_bias", f"{ours}expert_bias", (num,))
    gate_up, down = f"{ours}gate_up", f"{ours}down"
    if experts == "fused":
        yield Piece(f"{theirs}experts.gate_up_proj", gate_up, (num, 2 * d_ff, width))
        yield Piece(f"{theirs}experts.down_proj", down, (num, width, d_ff))
        return
    for expert in range(num):
        stem = f"{theirs}experts.{expert}."
        yield Piece(f"{stem}w1.weight", gate_up, (d_ff, width), (0, d_ff), expert)
        yield Piece(f"{stem}w3.weight", gate_up, (d_ff, width), (d_ff, 2 * d_ff), expert)
        yield Piece(f"{stem}w2.weight", down, (width, d_ff), None, expert)


def is_float(dtype: torch.dtype) -> bool:
    """Whether weights can be stored in a dtype: real, floating and at least 16 bits wide."""
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
