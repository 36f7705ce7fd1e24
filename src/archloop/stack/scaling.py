"""A design at another size: the same blocks in the same order, made to fit a parameter budget.

1. Experts become fewer, at most `MOST_EXPERTS`, of which the same share acts on each token: with
   hundreds of them a small stack would be next to nothing but experts.
2. The width is chosen, a multiple of 64, at which the count comes nearest to the budget. Heads,
   inner widths and groups follow it (`Config.at_width`); depth, widths of heads, kernels, windows
   and states stay as published.
3. The feed-forwards take what is missing, in steps of 8 hidden units a block. Where there are none,
   or too few, the depth does, in steps of one block: the pattern goes on from its start, or ends
   earlier.
"""

from collections.abc import Iterator
from typing import Any

from archloop.blocks.base import ChannelConfig
from archloop.errors import UserError
from archloop.stack import cost
from archloop.stack.cost import channel_config, mixer_config
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

MOST_EXPERTS = 32
WIDTH_STEP = 64
WIDEST = 1 << 14
TOLERANCE = 0.01
"""Largest relative distance from the budget."""
_HIDDEN_STEP = 8
_FAR = 4
"""Widths with more than so many times the budget are not looked at."""
_STRETCH = (0.25, 4.0)
"""Hidden widths over the published ones, at the least and at the most."""


def at_budget(spec: StackSpec, num_params: int, vocab_size: int | None = None) -> StackSpec:
    """The design with so many parameters, within 1%.

    Args:
        spec: the published design.
        num_params: the budget, embeddings included.
        vocab_size: of the result; None keeps the design's.

    Raises:
        UserError: no width and no feed-forward of this design has so many parameters.
    """
    spec = spec.replace(vocab_size=vocab_size or spec.vocab_size)
    spec = _map_channels(spec, _fewer_experts)
    widths = _widths(spec, _FAR * num_params)
    best = min(widths, key=lambda found: _distance(found, num_params), default=None)
    if best is not None:
        best = _fitted(best, num_params)
    if best is None or _distance(best, num_params) > TOLERANCE * num_params:
        raise UserError(
            f"no width of this design has {num_params:,} parameters with a vocabulary of "
            f"{spec.vocab_size:,}; give a larger budget, or a smaller vocabulary"
        )
    return best


def at_width(spec: StackSpec, d_model: int) -> StackSpec:
    """The design at another width. Raises `UserError` where it cannot be built there."""
    blocks = tuple(
        block.model_copy(
            update={
                "mixers": tuple(_mixer_at(mixer, spec.d_model, d_model) for mixer in block.mixers)
            }
        )
        for block in spec.blocks
    )
    wider = spec.replace(d_model=d_model, blocks=blocks)
    cost.check(wider)
    return wider


def _widths(spec: StackSpec, most: int) -> Iterator[StackSpec]:
    """The design at every width where it can be built, up to about `most` parameters."""
    for d_model in range(WIDTH_STEP, WIDEST + 1, WIDTH_STEP):
        try:
            wider = at_width(spec, d_model)
        except UserError:
            continue
        yield wider
        if cost.num_params(wider) > most:
            return


def _mixer_at(mixer: MixerSpec, d_model: int, new: int) -> MixerSpec:
    config = mixer_config(mixer).at_width(d_model, new)
    return mixer.model_copy(update={"config": config.model_dump(exclude_defaults=True)})


def _fewer_experts(channel: ChannelMixerSpec) -> ChannelMixerSpec:
    config = channel_config(channel).with_experts(MOST_EXPERTS)
    return channel.model_copy(update={"config": config.model_dump(exclude_defaults=True)})


def _fitted(spec: StackSpec, num_params: int) -> StackSpec:
    """The design brought from near the budget to it."""
    if not any(block.channel_mixer for block in spec.blocks):
        return _deepened(spec, num_params)
    filled = _filled(spec, num_params)
    if _distance(filled, num_params) <= TOLERANCE * num_params:
        return filled
    return _filled(_deepened(spec, num_params), num_params)


def _filled(spec: StackSpec, num_params: int) -> StackSpec:
    """Feed-forwards widened or narrowed together, then one after the other by one step."""
    low, high = _STRETCH
    for _ in range(40):
        middle = (low + high) / 2
        fits = cost.num_params(_stretched(spec, middle)) <= num_params
        low, high = (middle, high) if fits else (low, middle)
    best = _stretched(spec, low)
    for index, block in enumerate(best.blocks):
        channel = block.channel_mixer
        if channel is None or channel.weights_from is not None:
            continue
        more = _replaced(best, index, _with_hidden(channel, best.d_model, _HIDDEN_STEP))
        if _distance(more, num_params) >= _distance(best, num_params):
            break
        best = more
    return best


def _deepened(spec: StackSpec, num_params: int) -> StackSpec:
    """As many blocks as fit, by repeating the pattern or ending it earlier."""
    empty = cost.num_params(spec.replace(blocks=()))
    a_block = (cost.num_params(spec) - empty) / spec.num_blocks
    depth = max(1, round((num_params - empty) / a_block))
    repeated = spec.blocks * -(-depth // spec.num_blocks)
    if repeated[depth - 1].side:
        # A side block has nothing to be beside at the end of a stack.
        depth -= 1
    return spec.replace(blocks=repeated[:depth])


def _stretched(spec: StackSpec, factor: float) -> StackSpec:
    return _map_channels(spec, lambda channel: _times(channel, spec.d_model, factor))


def _map_channels(spec: StackSpec, change: Any) -> StackSpec:
    """Every channel mixer changed alike, so that those that share weights stay equal."""
    blocks: list[BlockSpec] = []
    for block in spec.blocks:
        channel = None if block.channel_mixer is None else change(block.channel_mixer)
        blocks.append(block.model_copy(update={"channel_mixer": channel}))
    return spec.replace(blocks=tuple(blocks))


def _times(channel: ChannelMixerSpec, d_model: int, factor: float) -> ChannelMixerSpec:
    return _with_config(channel, channel_config(channel).widened(d_model, factor))


def _with_hidden(channel: ChannelMixerSpec, d_model: int, more: int) -> ChannelMixerSpec:
    return _with_config(channel, channel_config(channel).widened(d_model, 1.0, more))


def _with_config(channel: ChannelMixerSpec, config: ChannelConfig) -> ChannelMixerSpec:
    return channel.model_copy(update={"config": config.model_dump(exclude_defaults=True)})


def _replaced(spec: StackSpec, index: int, channel: ChannelMixerSpec) -> StackSpec:
    """One block's channel mixer exchanged, and those that take its weights with it."""
    blocks = list(spec.blocks)
    for at, block in enumerate(blocks):
        old = block.channel_mixer
        if at == index or (old is not None and old.weights_from == index):
            assert old is not None
            update = {"channel_mixer": old.model_copy(update={"config": channel.config})}
            blocks[at] = block.model_copy(update=update)
    return spec.replace(blocks=tuple(blocks))


def _distance(spec: StackSpec, num_params: int) -> int:
    return abs(cost.num_params(spec) - num_params)
