"""What a stack costs, by formula alone: no module is built. Estimates, never measurements.

Counts are exact for parameters and state; FLOPs count matrix products and recurrences at batch 1
(one multiply-accumulate is two).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from pydantic import ValidationError

from archloop import registry
from archloop.blocks.base import ChannelConfig, MixerConfig
from archloop.errors import UserError, invalid
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


def mixer_config(spec: MixerSpec) -> MixerConfig:
    """The validated config of a mixer.

    Raises:
        UserError: unknown mixer or field, or a value that is not allowed.
    """
    config = _config("mixers", spec.name, tuple(sorted(spec.config.items())))
    assert isinstance(config, MixerConfig)
    return config


def channel_config(spec: ChannelMixerSpec) -> ChannelConfig:
    """The validated config of a channel mixer. Raises as `mixer_config`."""
    config = _config("channel_mixers", spec.name, tuple(sorted(spec.config.items())))
    assert isinstance(config, ChannelConfig)
    return config


def check(spec: StackSpec) -> None:
    """Refuse a spec whose decoder could not be built, without building it.

    Raises:
        UserError: a mixer is unknown, cannot have its settings at this width, or does not share.
    """
    for _, _, mixer in mixers(spec):
        mixer_config(mixer).check(spec.d_model, consumer=mixer.state_from is not None)
    for index, block in enumerate(spec.blocks):
        if block.channel_mixer is not None:
            channel_config(block.channel_mixer).check(spec.d_model)
        _check_inputs(spec, index, block)


def _check_inputs(spec: StackSpec, index: int, block: BlockSpec) -> None:
    """One norm serves all mixers of a block, and those of a block that has its norms."""
    widths = {mixer_config(mixer).input_width(spec.d_model) for mixer in block.mixers}
    if len(widths) > 1:
        raise UserError(
            f"blocks[{index}]: some of its mixers read the embedding beside the stream, others do "
            "not; all or none must"
        )
    if block.norms_from is not None and input_width(spec, block) != input_width(
        spec, spec.blocks[block.norms_from]
    ):
        raise UserError(
            f"blocks[{index}].norms_from={block.norms_from}: the norms are of another width"
        )


def input_width(spec: StackSpec, block: BlockSpec) -> int:
    """Width of what a block's mixers read."""
    if not block.mixers:
        return spec.d_model
    return mixer_config(block.mixers[0]).input_width(spec.d_model)


def keeps_more_than(spec: StackSpec, mixer: MixerSpec, num_tokens: int) -> bool:
    """Whether a mixer's state still grows behind so many tokens."""
    layout = mixer_config(mixer).state_layout
    return layout(spec.d_model, num_tokens) != layout(spec.d_model, 2 * num_tokens)


def reads_embedding(spec: StackSpec) -> bool:
    """Whether any block reads the embedding beside the stream."""
    return any(input_width(spec, block) != spec.d_model for block in spec.blocks)


def num_params(spec: StackSpec) -> int:
    """Parameters of the built decoder; shared weights count once."""
    return _count(spec, active=False)


def num_embedding_params(spec: StackSpec) -> int:
    """Those of them that grow with the vocabulary: the embedding, and the head if it is another."""
    return spec.vocab_size * spec.d_model * (1 if spec.tie_embeddings else 2)


def num_active_params(spec: StackSpec) -> int:
    """Parameters that act on one token: all but the experts that do not."""
    return _count(spec, active=True)


def state_bytes(spec: StackSpec, context: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of state of one sequence: KV and convolution state in `dtype`, recurrent in float32."""
    return sum(
        mixer_config(mixer).state_bytes(spec.d_model, context, dtype)
        for _, _, mixer in mixers(spec)
        if mixer.state_from is None
    )


def prefill_flops(spec: StackSpec, num_tokens: int, context: int = 0) -> int:
    """FLOPs to process `num_tokens` after `context` tokens, with the logits of the last one."""
    total = 2 * spec.d_model * spec.vocab_size
    for _, _, mixer in mixers(spec):
        total += mixer_config(mixer).prefill_flops(
            spec.d_model, num_tokens, context, consumer=mixer.state_from is not None
        )
    for block in spec.blocks:
        total += 2 * num_tokens * num_side_params(spec, block)
        if block.channel_mixer is not None:
            config = channel_config(block.channel_mixer)
            total += config.prefill_flops(spec.d_model, num_tokens, context)
    return total


def decode_flops(spec: StackSpec, context: int) -> int:
    """FLOPs of one decode step after `context` tokens."""
    total = 2 * spec.d_model * spec.vocab_size
    for _, _, mixer in mixers(spec):
        total += mixer_config(mixer).decode_flops(
            spec.d_model, context, consumer=mixer.state_from is not None
        )
    for block in spec.blocks:
        total += 2 * num_side_params(spec, block)
        if block.channel_mixer is not None:
            total += channel_config(block.channel_mixer).decode_flops(spec.d_model, context)
    return total


def mixers(spec: StackSpec) -> Iterator[tuple[int, int, MixerSpec]]:
    """Every mixer with its block index and slot."""
    for index, block in enumerate(spec.blocks):
        for slot, mixer in enumerate(block.mixers):
            yield index, slot, mixer


def _count(spec: StackSpec, active: bool) -> int:
    width = spec.d_model
    total = num_embedding_params(spec) + width
    for _, _, mixer in mixers(spec):
        mixer_settings = mixer_config(mixer)
        if mixer.weights_from is None:
            total += mixer_settings.num_params(width, consumer=mixer.state_from is not None)
        else:
            total += mixer_settings.num_unshared_params(width)
    for block in spec.blocks:
        total += num_norm_params(spec, block) + num_side_params(spec, block)
        if (channel := block.channel_mixer) is None:
            continue
        config = channel_config(channel)
        if channel.weights_from is not None:
            total += config.num_unshared_params(width)
        else:
            total += config.num_active_params(width) if active else config.num_params(width)
    return total


def num_norm_params(spec: StackSpec, block: BlockSpec) -> int:
    """Parameters of a block's RMS norms; none where it has another block's.

    One norm stands before each half that there is, one more behind it with post-norms, and one
    behind each of parallel mixers whose normed outputs are averaged.
    """
    if block.norms_from is not None:
        return 0
    halves = bool(block.mixers) + (block.channel_mixer is not None)
    behind = (halves if block.post_norms else 0) + num_mixer_norms(block)
    before = input_width(spec, block) if block.mixers else 0
    before += spec.d_model if block.channel_mixer is not None else 0
    return before + behind * spec.d_model


def num_side_params(spec: StackSpec, block: BlockSpec) -> int:
    """Parameters of the matrix through which a side block's output goes on."""
    return spec.d_model**2 if block.side else 0


def num_mixer_norms(block: BlockSpec) -> int:
    """Norms of single mixers' outputs, before they are averaged."""
    return len(block.mixers) if block.combine == "normed_mean" and len(block.mixers) > 1 else 0


@lru_cache(maxsize=4096)
def _config(kind: str, name: str, items: tuple[tuple[str, Any], ...]) -> Any:
    config_class = registry.get(kind, name).Config
    try:
        return config_class(**dict(items))
    except ValidationError as error:
        raise invalid(error, sorted(config_class.model_fields), name) from error
