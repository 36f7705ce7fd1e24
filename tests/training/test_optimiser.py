from typing import ClassVar

import pytest
import torch
from torch import nn

from archloop.blocks.base import ChannelMixer
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.training import optimiser
from archloop.training.optimiser import ParameterGroup, parameter_groups

CONV = MixerSpec(name="short_conv")
ATTENTION = MixerSpec(name="gqa", config={"head_dim": 16})
SWIGLU = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
MOE = ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2})


def decoder(d_model=64, tie=True):
    blocks = (
        BlockSpec(mixers=(CONV,), channel_mixer=SWIGLU),
        BlockSpec(mixers=(ATTENTION,), channel_mixer=MOE),
    )
    spec = StackSpec(d_model=d_model, vocab_size=50, blocks=blocks, tie_embeddings=tie)
    return Decoder(spec)


def groups(model, name="adamw", base_width=None):
    return parameter_groups(model, name, base_width, model.spec.d_model)


class Odd(ChannelMixer):
    no_decay = frozenset({"inner"})
    lr_scale: ClassVar = {"inner": 0.25, "scale": 0.5}

    def __init__(self):
        super().__init__()
        self.inner = nn.Parameter(torch.ones(3, 3))
        self.outer = nn.Parameter(torch.ones(3, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x_BTD):
        return x_BTD


def test_every_parameter_is_in_one_group():
    model = decoder()
    built = optimiser.build(model, groups(model, "muon"), 1e-3, 0.1, (0.9, 0.95))
    members = [p for o in built for g in o.param_groups for p in g["params"]]
    assert len(members) == len({id(p) for p in members}) == len(list(model.parameters()))


def test_norms_biases_and_embeddings_do_not_decay():
    for name, group in groups(decoder()).items():
        expected = not ("norm" in name or name == "embedding.weight")
        assert group.decays == expected, name


def test_declarations_of_mixers_are_followed():
    model = nn.Sequential(Odd())
    assert parameter_groups(model, "adamw", None, 3) == {
        "0.inner": ParameterGroup("adamw", 0.25, False),
        "0.outer": ParameterGroup("adamw", 1.0, True),
        "0.scale": ParameterGroup("adamw", 0.5, False),
    }


def test_width_transfer_scales_hidden_matrices_by_fan_in():
    found = {name: g.lr_factor for name, g in groups(decoder(), base_width=32).items()}
    assert found["blocks.0.mixers.0.in_proj.weight"] == 32 / 64
    assert found["blocks.0.channel_mixer.gate_up_proj.weight"] == 32 / 64
    assert found["blocks.0.channel_mixer.down_proj.weight"] == 32 / 128
    assert found["blocks.1.channel_mixer.gate_up"] == 32 / 64
    # The kernel's fan-in does not grow with the width, nor do norms have one.
    assert found["blocks.0.mixers.0.conv"] == 1.0
    assert found["norm.weight"] == 1.0


def test_embedding_counts_as_output_matrix_only_when_tied():
    assert groups(decoder(), base_width=32)["embedding.weight"].lr_factor == 0.5
    untied = groups(decoder(tie=False), base_width=32)
    assert untied["embedding.weight"].lr_factor == 1.0
    assert untied["head.weight"].lr_factor == 0.5


def test_low_rank_factors_do_not_learn_faster():
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False))
    found = parameter_groups(model, "adamw", 64, 64)
    assert [g.lr_factor for g in found.values()] == [1.0, 1.0]


def test_muon_takes_the_hidden_matrices_only():
    found = groups(decoder(tie=False), "muon", base_width=16)
    muon = {name for name, g in found.items() if g.optimiser == "muon"}
    assert muon == {
        "blocks.0.mixers.0.in_proj.weight",
        "blocks.0.mixers.0.out_proj.weight",
        "blocks.0.channel_mixer.gate_up_proj.weight",
        "blocks.0.channel_mixer.down_proj.weight",
        "blocks.1.mixers.0.qkv_proj.weight",
        "blocks.1.mixers.0.out_proj.weight",
        "blocks.1.channel_mixer.router.weight",
        "head.weight",
    }
    assert found["blocks.0.mixers.0.in_proj.weight"].lr_factor == 0.5


def test_decay_is_independent_of_the_rate_factor():
    model = decoder()
    built = optimiser.build(model, groups(model, base_width=32), 1e-3, 0.1, (0.9, 0.95))
    products = {round(g["lr"] * g["weight_decay"], 12) for o in built for g in o.param_groups}
    assert products == {0.0, 1e-4}


def test_rates_follow_the_schedule():
    model = decoder()
    built = optimiser.build(model, groups(model, base_width=32), 1e-3, 0.1, (0.9, 0.95))
    before = [g["lr"] for o in built for g in o.param_groups]
    optimiser.set_lr_factor(built, 0.5)
    optimiser.set_lr_factor(built, 0.25)
    after = [g["lr"] for o in built for g in o.param_groups]
    assert after == pytest.approx([0.25 * lr for lr in before])


@pytest.mark.slow
def test_the_best_rate_is_the_same_at_two_widths():
    """What width transfer is for: the loss against the rate has its minimum at the same place."""
    from archloop.training.batch import Batch
    from archloop.training.loop import TrainingConfig, train

    torch.manual_seed(0)
    table = torch.randint(50, (50, 50))

    def batches(step):
        rng = torch.Generator().manual_seed(step)
        ids = torch.randint(50, (16, 33), generator=rng)
        ids[:, 2::2] = table[ids[:, 0:-1:2], ids[:, 1::2]]
        return [Batch(ids[:, :-1], ids[:, 1:])]

    best = {}
    for width in (32, 128):
        final = {}
        for rate in (1e-3, 4e-3, 1.6e-2, 6.4e-2):
            torch.manual_seed(1)
            config = TrainingConfig(learning_rate=rate, base_width=32, num_steps=150)
            result = train(decoder(width), batches, config, 0)
            final[rate] = sum(loss for _, loss in result.losses[-20:]) / 20
        best[width] = min(final, key=final.get)
    assert best[32] == best[128]
