"""Feed-forwards of one width by zeros: the same logits, for formats that know one width alone.

A parameter budget is met by widths that differ from block to block by a step, which no family of
transformers can say but few. A hidden unit without weights adds nothing, so narrower blocks are
filled up with such units until all are as wide as the widest.
"""

import torch
from torch import Tensor

from archloop.stack import cost, weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, StackSpec

_INTO = ("up_proj.weight", "adapter.up.0.weight")
"""Ends of names of the matrices into a hidden layer."""


def padded_spec(spec: StackSpec) -> StackSpec:
    """The spec with every feed-forward as wide as the widest of its plug-in."""
    widest: dict[str, int] = {}
    for block in spec.blocks:
        if (width := _width(block, spec.d_model)) is not None:
            assert block.channel_mixer is not None
            name = block.channel_mixer.name
            widest[name] = max(width, widest.get(name, 0))
    return spec.replace(
        blocks=tuple(_as_wide(block, spec.d_model, widest) for block in spec.blocks)
    )


def padded(decoder: Decoder) -> Decoder:
    """A decoder of `padded_spec` with the same logits, to the last digits of longer sums."""
    wide = Decoder(padded_spec(decoder.spec)).to(decoder.embedding.weight.dtype)
    narrow = weights.tensors(decoder)
    with torch.no_grad():
        for name, tensor in weights.tensors(wide).items():
            tensor.zero_()
            num = _num_parts(decoder.spec, name)
            for whole, part in zip(tensor.chunk(num), narrow[name].chunk(num), strict=True):
                _corner(whole, part).copy_(part)
    wide.special_tokens = decoder.special_tokens
    return wide.eval()


def _num_parts(spec: StackSpec, name: str) -> int:
    """Parts of a tensor that are each filled up at their own end: gate and up projection are one
    matrix, to which an adapter adds.
    """
    match name.split("."):
        case ["blocks", index, "channel_mixer", *_] if name.endswith(_INTO):
            channel = spec.blocks[int(index)].channel_mixer
            assert channel is not None
            parts: int = getattr(cost.channel_config(channel), "into", 1)
            return parts
    return 1


def _corner(whole: Tensor, part: Tensor) -> Tensor:
    return whole[tuple(slice(size) for size in part.shape)]


def _width(block: BlockSpec, d_model: int) -> int | None:
    """The hidden width of a block's feed-forward; None for other channel mixers."""
    if block.channel_mixer is None:
        return None
    width = cost.channel_config(block.channel_mixer).sizes(d_model).get("d_ff")
    return width if isinstance(width, int) else None


def _as_wide(block: BlockSpec, d_model: int, widest: dict[str, int]) -> BlockSpec:
    channel = block.channel_mixer
    if channel is None or channel.name not in widest:
        return block
    config = {**channel.config, "expansion": widest[channel.name] / d_model}
    return block.model_copy(update={"channel_mixer": channel.model_copy(update={"config": config})})
