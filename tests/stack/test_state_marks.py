"""A mark takes a state back over tokens read since, and is written anew in place."""

import torch

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


def test_a_mark_is_written_anew_in_place():
    channel = ChannelMixerSpec(name="swiglu")
    names = ("short_conv", "gqa", "mamba2")
    blocks = tuple(BlockSpec(mixers=(MixerSpec(name=n),), channel_mixer=channel) for n in names)
    torch.manual_seed(0)
    decoder = Decoder(StackSpec(d_model=64, vocab_size=32, blocks=blocks)).eval()
    ids = torch.randint(0, 32, (2, 12))
    with torch.no_grad():
        state = decoder.init_state(2, 16)
        decoder.prefill(ids[:, :5], state)
        mark = state.mark()
        held = [t for own in mark.mixers.values() for t in own.tensors.values()]
        decoder.prefill(ids[:, 5:9], state)
        assert state.mark(mark) is mark
        again = [t for own in mark.mixers.values() for t in own.tensors.values()]
        assert all(a is b for a, b in zip(again, held, strict=True))
        expected = decoder.step(ids[:, 9], state).clone()
        decoder.step(ids[:, 10], state)
        state.restore(mark)
        assert state.num_tokens == 9
        torch.testing.assert_close(decoder.step(ids[:, 9], state), expected, rtol=0, atol=0)
