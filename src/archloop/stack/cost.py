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
from archloop.errors import invalid
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
    for block in spec.blocks:
        if block.channel_mixer is not None:
            channel_config(block.channel_mixer).check(spec.d_model)


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
        if mixer.weights_from is None:
            consumer = mixer.state_from is not None
            total += mixer_config(mixer).num_params(width, consumer=consumer)
    for block in spec.blocks:
        total += num_norms(block) * width
        if block.channel_mixer is not None and block.channel_mixer.weights_from is None:
            config = channel_config(block.channel_mixer)
            total += config.num_active_params(width) if active else config.num_params(width)
    return total


def num_norms(block: BlockSpec) -> int:
    """RMS norms of model width in a block.

    One before each half that there is, one more behind it with post-norms, and one for each of
    parallel mixers whose normed outputs are averaged.
    """
    halves = bool(block.mixers) + (block.channel_mixer is not None)
    return halves * (2 if block.post_norms else 1) + num_mixer_norms(block)


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
