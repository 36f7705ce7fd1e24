"""Which part of a decoder first gives numbers that are not finite.

Every half of a block adds its output to the residual stream, which the next norm reads: the first
norm whose input is not finite stands right behind the part at fault.
"""

from typing import Any

import torch
from torch import Tensor, nn

from archloop.stack.decoder import Decoder


@torch.no_grad()
def first_not_finite(decoder: Decoder, ids_BT: Tensor) -> str | None:
    """The part of a decoder at fault, such as ``mixer mamba of blocks[3]``; None if there is none.

    Args:
        decoder: in any precision; its outputs are looked at, nothing of it is changed.
        ids_BT: tokens to run it on.
    """
    found: list[str] = []
    waiting: dict[nn.Module, list[str]] = {}
    for norm, before in _norms_and_parts(decoder):
        # Blocks may share a norm, which is then called once for each, in their order.
        waiting.setdefault(norm, []).append(before)

    def look(norm: nn.Module, inputs: Any) -> None:
        before = waiting[norm].pop(0)
        if not found and not bool(torch.isfinite(inputs[0]).all()):
            found.append(before)

    hooks = [norm.register_forward_pre_hook(look) for norm in waiting]
    try:
        logits_BTV = decoder(ids_BT)
    finally:
        for each in hooks:
            each.remove()
    if not found and not bool(torch.isfinite(logits_BTV).all()):
        return "the last norm or the head"
    return found[0] if found else None


def _norms_and_parts(decoder: Decoder) -> list[tuple[nn.Module, str]]:
    """Each norm that reads the residual stream, with what was added to the stream last."""
    pairs: list[tuple[nn.Module, str]] = []
    before = "the embedding"
    for index, spec in enumerate(decoder.spec.blocks):
        block: Any = decoder.blocks[index]
        if block.mixer_norm is not None:
            pairs.append((block.mixer_norm, before))
            before = f"mixer {' or '.join(m.name for m in spec.mixers)} of blocks[{index}]"
        if block.channel_norm is not None:
            pairs.append((block.channel_norm, before))
            assert spec.channel_mixer is not None
            before = f"channel mixer {spec.channel_mixer.name} of blocks[{index}]"
    return [*pairs, (decoder.norm, before)]
