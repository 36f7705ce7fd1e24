"""A training on a GPU: kernels compiled ahead change nothing of it."""

import copy

import pytest
import torch

from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training import loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CHANNEL = {
    "swiglu": ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
    "moe": ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2, "expansion": 0.5}),
}
SPEC = StackSpec(
    d_model=128,
    vocab_size=20,
    blocks=tuple(
        BlockSpec(mixers=(MixerSpec(name=mixer),), channel_mixer=CHANNEL[channel])
        for mixer, channel in (
            ("short_conv", "swiglu"), ("gqa", "moe"), ("kda", "swiglu"), ("mamba2", "moe")
        )
    ),
)  # fmt: skip


def batches(step: int) -> list[loop.Batch]:
    rng = torch.Generator().manual_seed(step)
    ids_BT = (torch.randint(20, (8, 1), generator=rng) + torch.arange(34 + step)) % 20
    return [loop.Batch(ids_BT[:, :-1], ids_BT[:, 1:])]


def test_compiling_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first = Decoder(SPEC).cuda()
    second = copy.deepcopy(first)
    config = loop.TrainingConfig(num_steps=30, warmup_steps=3)
    one = loop.train(first, batches, config, 0)
    monkeypatch.setattr(loop, "compile_ahead", lambda run: None)
    two = loop.train(second, batches, config, 0)
    assert not one.diverged
    assert one.losses[-1][1] < 0.5 * one.losses[0][1]
    assert [loss for _, loss in one.losses] == pytest.approx([loss for _, loss in two.losses], 1e-3)
