"""The walk over a module's tensors: each once, whatever is shared or compiled."""

import torch

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.stack.tensors import leaves


def test_each_tensor_once_under_its_first_name() -> None:
    moe = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2})
    blocks = (
        BlockSpec(mixers=(MixerSpec(name="s4"),), channel_mixer=moe),
        BlockSpec(mixers=(MixerSpec(name="s4", weights_from=0),), channel_mixer=moe),
    )
    decoder = Decoder(StackSpec(d_model=64, vocab_size=50, blocks=blocks))
    found = {leaf.name: leaf for leaf in leaves(decoder)}
    theirs = {name: id(t) for name, t in [*decoder.named_parameters(), *decoder.named_buffers()]}
    assert {name: id(leaf.tensor) for name, leaf in found.items()} == theirs
    saved = decoder.state_dict().keys()
    assert all(leaf.is_saved == (name in saved) for name, leaf in found.items())
    assert not any(name.startswith("blocks.1.mixers") for name in found)
    assert all(getattr(leaf.owner, leaf.attribute) is leaf.tensor for leaf in found.values())
    decoder.blocks[0] = torch.compile(decoder.blocks[0])  # type: ignore[assignment]
    assert {leaf.name for leaf in leaves(decoder)} == found.keys()
