"""A small stack to generate with: a state of few numbers, and one that grows."""

from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SPEC = StackSpec(
    d_model=64,
    vocab_size=61,
    blocks=tuple(
        BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name="swiglu"))
        for name in ("short_conv", "gqa")
    ),
)
