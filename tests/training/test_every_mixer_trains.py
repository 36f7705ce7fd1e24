"""Every mixer can be trained: the loss falls, and twice the same gives the same weights."""

import pytest
import torch

from archloop import registry
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training.batch import Batch
from archloop.training.loop import TrainingConfig, train


def batches(step):
    rng = torch.Generator().manual_seed(step)
    ids_BT = (torch.randint(16, (4, 1), generator=rng) + torch.arange(25)) % 16
    return [Batch(ids_BT[:, :-1], ids_BT[:, 1:])]


def trained(name):
    channel = ChannelMixerSpec(name="swiglu", config={"expansion": 1.0})
    block = BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=channel)
    torch.manual_seed(0)
    model = Decoder(StackSpec(d_model=128, vocab_size=16, blocks=(block,)))
    result = train(model, batches, TrainingConfig(num_steps=8, warmup_steps=1), 0)
    return model, result


@pytest.mark.parametrize("name", registry.names("mixers"))
def test_mixer_trains_and_repeats(name):
    model, result = trained(name)
    assert not result.diverged
    assert result.losses[-1][1] < 0.8 * result.losses[0][1]
    again, _ = trained(name)
    for (key, one), two in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), key


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
def test_every_parameter_of_a_new_cfc_has_a_gradient(mode):
    """A rate of 0 under an absolute value would stay 0 for good."""
    torch.manual_seed(0)
    mixer = registry.get("mixers", "cfc").Config(mode=mode).build(32)
    y_BTD, _ = mixer(torch.randn(2, 7, 32))
    y_BTD.square().mean().backward()
    for name, parameter in mixer.named_parameters():
        assert (parameter.grad != 0).any(), name
