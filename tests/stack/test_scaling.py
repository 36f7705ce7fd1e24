"""Designs at another size keep what makes them one, and meet the budget."""

import pytest

from archloop.errors import UserError
from archloop.stack import cost, presets, scaling
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

BUDGET = 60_000_000
OWN = [name for name in presets.names() if not name.endswith(presets.TWIN_SUFFIX)]


@pytest.mark.parametrize("name", OWN)
def test_every_preset_meets_a_budget_and_keeps_its_order(name: str) -> None:
    spec = presets.load(name)
    scaled = scaling.at_budget(spec, BUDGET, 4096)
    assert cost.num_params(scaled) == pytest.approx(BUDGET, rel=0.01)
    assert scaled.vocab_size == 4096
    repeated = spec.layout * -(-scaled.num_blocks // spec.num_blocks)
    assert scaled.layout == repeated[: scaled.num_blocks]
    # Zamba2's feed-forwards are one that is shared: too little to take what is missing.
    if any(block.channel_mixer for block in spec.blocks) and not name.startswith("zamba2"):
        assert scaled.num_blocks == spec.num_blocks


def test_heads_follow_the_width_in_whole_groups() -> None:
    spec = presets.load("lfm3-1.7b")
    narrow = scaling.at_width(spec, 640)
    for _, _, mixer in cost.mixers(narrow):
        if mixer.name in ("gqa", "swa"):
            sizes = cost.mixer_config(mixer).sizes(640)
            assert sizes == {"num_heads": 4, "num_kv_heads": 1, "head_dim": 128}
    assert scaling.at_width(narrow, 2048).layout == spec.layout
    assert cost.num_params(scaling.at_width(spec, 2048)) == cost.num_params(spec)


def test_groups_of_mamba2_serve_as_many_heads() -> None:
    spec = scaling.at_width(presets.load("nemotron-h-8b"), 1024)
    mixer = next(mixer for _, _, mixer in cost.mixers(spec) if mixer.name == "mamba2")
    sizes = cost.mixer_config(mixer).sizes(1024)
    assert (sizes["num_heads"], sizes["num_groups"]) == (32, 2)


def test_experts_become_fewer_and_as_many_of_them_act() -> None:
    config = {"num_experts": 256, "top_k": 16, "router": "kimi", "num_groups": 8, "top_groups": 4}
    moe = cost.channel_config(ChannelMixerSpec(name="moe", config=config))
    fewer = moe.with_experts(32)
    assert (fewer.num_experts, fewer.top_k) == (32, 2)
    assert (fewer.num_groups, fewer.top_groups) == (8, 4)
    assert moe.with_experts(256) == moe
    few = moe.with_experts(4)
    assert (few.num_experts, few.top_k, few.num_groups, few.top_groups) == (4, 1, 4, 2)


def test_blocks_that_share_a_feed_forward_still_do() -> None:
    channel = ChannelMixerSpec(name="swiglu")
    shared = channel.model_copy(update={"weights_from": 0})
    mixer = MixerSpec(name="gqa")
    blocks = tuple(
        BlockSpec(mixers=(mixer,), channel_mixer=shared if index % 2 else channel)
        for index in range(1, 5)
    )
    blocks = (BlockSpec(mixers=(mixer,), channel_mixer=channel), *blocks)
    spec = StackSpec(d_model=128, vocab_size=512, blocks=blocks)
    scaled = scaling.at_budget(spec, 5_000_000)
    assert [b.channel_mixer.weights_from for b in scaled.blocks if b.channel_mixer] == [
        None, 0, None, 0, None
    ]  # fmt: skip
    assert cost.num_params(scaled) == pytest.approx(5_000_000, rel=0.01)


def test_a_budget_below_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match=r"no width of this design has 1,000,000 parameters"):
        scaling.at_budget(presets.load("lfm2-350m"), 1_000_000)
