"""Published hybrids that are no chain of one mixer and one channel mixer: a space proposes them,
mutates, crosses, repairs and builds them, and reads them off a spec.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from archloop.space.budget import trained_target
from archloop.space.config import SpaceConfig
from archloop.space.encoding import proxied
from archloop.space.genome import Genome
from archloop.space.opening import open_space
from archloop.space.operators import applicable
from archloop.space.repair import repair
from archloop.space.seeding import from_layout, from_spec, pure
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import crossover, mutate, sample
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from space.spaces import assert_valid

SHARED: dict[str, Any] = {
    "ship": {"d_model": 128, "vocab_size": 512},
    "proxy": {"d_model": 64, "vocab_size": 300},
    "mixers": {"mamba2": {"state_dim": [16, 32]}, "gqa": {"head_dim": 32}, "short_conv": {}},
    "channel_mixers": {"swiglu": {"expansion": [1, 2, 3, 4]}},
}
NEMOTRON = SHARED | {
    "num_blocks": [6, 8],
    "channel_mixers": {"relu2": {"expansion": [2, 3, 4, 5]}, "moe": {"num_experts": 4}},
    "structure": {"halves": ["mixers", "channel_mixer"]},
    "interleaving": {"min_global": 1},
}
FALCON = SHARED | {
    "num_blocks": 4,
    "mixers": {
        "mamba2": {"state_dim": [16, 32], "input_multiplier": 0.25, "multiplier": [0.5, 1.0]},
        "gqa": {"head_dim": 32, "multiplier": [1.0, 2.0]},
        "short_conv": {},
    },
    "structure": {"num_mixers": [1, 2]},
    "block": {"combine": ["sum", "normed_mean"], "post_norms": [False, True]},
    "stack": {"embedding_multiplier": [1.0, 5.5], "logits_divisor": 2.0},
    "scope": {"mamba2.state_dim": "block", "post_norms": "block"},
    "budget": {"num_params": 960_000, "free": "swiglu.expansion", "tolerance": 0.05},
}
ZAMBA = SHARED | {
    "num_blocks": [6, 9],
    "channel_mixers": {"swiglu": {"expansion": [0.5, 1, 2, 4, 6]}},
    "structure": {"halves": ["mixers", "both"]},
    "block": {"side": [False, True]},
    "scope": {"side": "block"},
    "sharing": {"weights": True, "channel_weights": True},
    "budget": {"num_params": 950_000, "free": "swiglu.expansion", "tolerance": 0.05},
}
NAMED = {"nemotron": NEMOTRON, "falcon": FALCON, "zamba": ZAMBA}
every_space = pytest.mark.parametrize("name", NAMED)


@cache
def opened(name: str) -> Space:
    return open_space(SpaceConfig(**NAMED[name]))


def mixer(name: str, config: dict[str, Any] | None = None, **more: Any) -> MixerSpec:
    return MixerSpec(name=name, config=config or {}, **more)


def published(name: str) -> StackSpec:
    """A stack as the paper has it, in small, with the settings of its space."""
    ssm, attention = {"state_dim": 16}, {"head_dim": 32}
    if name == "nemotron":
        channel = BlockSpec(channel_mixer=ChannelMixerSpec(name="relu2", config={"expansion": 4}))
        mamba = BlockSpec(mixers=(mixer("mamba2", ssm),))
        blocks = (mamba, channel, mamba, BlockSpec(mixers=(mixer("gqa", attention),)), channel)
        return StackSpec(d_model=256, vocab_size=1000, blocks=(*blocks, mamba))
    dense = ChannelMixerSpec(name="swiglu", config={"expansion": 2})
    if name == "falcon":
        both = (
            mixer("mamba2", ssm, input_multiplier=0.25, multiplier=0.5),
            mixer("gqa", attention, multiplier=2.0),
        )
        block = BlockSpec(mixers=both, channel_mixer=dense)
        stack = {"embedding_multiplier": 5.5, "logits_divisor": 2.0}
        return StackSpec(d_model=256, vocab_size=1000, blocks=(block,) * 4, **stack)
    mamba = BlockSpec(mixers=(mixer("mamba2", ssm),))
    full = BlockSpec(mixers=(mixer("gqa", attention),), channel_mixer=dense)
    again = BlockSpec(
        mixers=(mixer("gqa", attention, weights_from=2),),
        channel_mixer=dense.model_copy(update={"weights_from": 2}),
    )
    blocks = (mamba, mamba, full, mamba, mamba, again, mamba, mamba, again)
    return StackSpec(d_model=256, vocab_size=1000, blocks=blocks)


@every_space
def test_a_walk_of_all_operators_keeps_every_rule(name: str) -> None:
    space = opened(name)
    seen = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = sample(space, rng), sample(space, rng)
        for _ in range(6):
            a, b = mutate(space, a, rng), crossover(space, a, b, rng)
            assert_valid(space, a)
            assert_valid(space, b)
            seen |= {block.halves for block in a.blocks}
    assert seen == set(space.halves)


@every_space
def test_the_published_stack_is_read_back_and_varied(name: str) -> None:
    space, spec = opened(name), published(name)
    genome = from_spec(space, spec)
    assert_valid(space, genome)
    ship = to_spec(space, genome, "ship")
    assert ship.layout == spec.layout
    for mine, theirs in zip(ship.blocks, spec.blocks, strict=True):
        assert mine.combine == theirs.combine
        for a, b in zip(mine.mixers, theirs.mixers, strict=True):
            assert (a.multiplier, a.weights_from) == (b.multiplier, b.weights_from)
        if mine.channel_mixer is not None:
            assert theirs.channel_mixer is not None
            assert mine.channel_mixer.weights_from == theirs.channel_mixer.weights_from
    assert (ship.embedding_multiplier, ship.logits_divisor) == (
        spec.embedding_multiplier,
        spec.logits_divisor,
    )
    rng = np.random.default_rng(0)
    other = sample(space, rng)
    for child in (mutate(space, genome, rng), crossover(space, genome, other, rng)):
        assert to_spec(space, child, "ship") != ship
        assert_valid(space, child)


@every_space
@pytest.mark.parametrize("scale", ["ship", "proxy"])
def test_what_a_space_proposes_builds_and_has_the_parameters_counted(name: str, scale: Any) -> None:
    space, rng = opened(name), np.random.default_rng(1)
    for genome in [from_spec(space, published(name)), *(sample(space, rng) for _ in range(3))]:
        decoder = Decoder(to_spec(space, genome, scale)).eval()
        assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(decoder.spec)
        ids_BT = torch.randint(0, 300, (2, 9))
        whole_BTV = decoder(ids_BT)
        state = decoder.init_state(2, 9)
        decoder.prefill(ids_BT[:, :8], state)
        assert torch.allclose(decoder.step(ids_BT[:, 8], state), whole_BTV[:, 8], atol=1e-4)


@every_space
def test_a_spec_is_read_back_as_the_genome_that_gave_it(name: str) -> None:
    space, rng = opened(name), np.random.default_rng(5)
    for _ in range(10):
        spec = to_spec(space, sample(space, rng), "ship")
        assert to_spec(space, from_spec(space, spec), "ship") == spec


@every_space
def test_each_operator_acts(name: str) -> None:
    space, rng = opened(name), np.random.default_rng(0)
    genomes = [sample(space, rng) for _ in range(25)]
    for operator in applicable(space):
        children = []
        for genome in genomes:
            child = operator(space, genome, rng)
            if child is not None:
                try:
                    children.append(repair(space, child) != genome)
                except ValueError:
                    continue
        assert sum(children) >= 2, operator.__name__


def test_a_shared_block_pays_for_itself_once_and_the_budget_goes_to_the_rest() -> None:
    space = opened("zamba")
    genome = from_spec(space, published("zamba"))
    lender, borrower = genome.blocks[2].channel_mixer, genome.blocks[5].channel_mixer
    assert lender is not None
    assert borrower is not None
    assert borrower.genes == lender.genes, "a lent channel mixer has one width"
    alone = repair(space, genome.replace(blocks=tuple(b.without_sharing() for b in genome.blocks)))
    other = alone.blocks[2].channel_mixer
    assert other is not None
    assert lender.genes["expansion"] > other.genes["expansion"]


def test_parallel_mixers_have_one_order() -> None:
    space = opened("falcon")
    a = from_layout(space, ["gqa+mamba2", "short_conv", "gqa", "gqa"])
    b = from_layout(space, ["mamba2+gqa", "short_conv", "gqa", "gqa"])
    assert a == b
    assert a.layout[0] == "mamba2+gqa"
    # How a single mixer's output is combined says nothing, so it is not in the spec.
    genes = {**a.family_genes, "block": {"combine": "normed_mean"}}
    spec = to_spec(space, repair(space, a.replace(family_genes=genes)), "ship")
    assert [block.combine for block in spec.blocks] == ["normed_mean", "sum", "sum", "sum"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structure": {"halves": "channel_mixer"}}, "leaves no mixer"),
        ({"structure": {"num_mixers": 9}}, "num_mixers"),
        ({"channel_mixers": {}}, "channel_mixers is empty"),
        ({"mixers": {"block": {}}}, "no family may be called 'block'"),
        ({"block": {"combin": "sum"}}, r"space.block.combin: .*did you mean 'combine'"),
        ({"block": {"combine": ["sum", "product"]}}, r"space.block.combine='product'.*'sum'"),
        ({"stack": {"norm_eps": 0}}, r"space.stack.norm_eps=0 is not allowed"),
        ({"stack": {"norm_eps": [1e-5, 1e-6]}, "scope": {"norm_eps": "block"}}, "whole stack"),
        ({"mixers": {"gqa": {"multiplier": "wide"}}}, r"mixers.gqa.multiplier='wide'"),
        (
            {"mixers": {"swa": {"window": [{"ship": 64, "proxy": 8}, {"ship": 64, "proxy": 16}]}}},
            r"swa.window=64: at proxy width 8 and 16",
        ),
    ],
)
def test_sections_that_cannot_be_met_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_space(SpaceConfig(**(SHARED | {"num_blocks": 2} | changes)))


def test_a_window_may_be_another_at_proxy_width() -> None:
    windows = [{"ship": 256, "proxy": 32}, {"ship": 512, "proxy": 16}]
    config = SHARED | {"num_blocks": 2, "mixers": {"swa": {"window": windows}, "gqa": {}}}
    space = open_space(SpaceConfig(**config))
    genome = from_layout(space, ["swa", "gqa"])
    assert to_spec(space, genome, "ship").blocks[0].mixers[0].config == {"window": 256}
    assert to_spec(space, genome, "proxy").blocks[0].mixers[0].config == {"window": 32}
    assert from_spec(space, to_spec(space, genome, "ship")) == genome
    assert_valid(space, genome)
    same = [{"ship": 256, "proxy": 32}, {"ship": 512, "proxy": 32}]
    config["mixers"] = {"swa": {"window": same}}
    with pytest.raises(ValueError, match=r"window=256 and window=512 coincide at proxy.d_model"):
        open_space(SpaceConfig(**config))


def test_proxies_are_equal_in_parameters_where_the_recipe_asks_for_it() -> None:
    """Equal at ship width alone, proxies of one mixer differ by a fifth of their blocks."""
    grid = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    config = SHARED | {
        "ship": {"d_model": 512, "vocab_size": 8192},
        "num_blocks": 8,
        "mixers": {
            "short_conv": {"kernel": 7},
            "gqa": {"head_dim": 32},
            "mamba2": {"state_dim": 32},
            "gla": {},
        },
        "channel_mixers": {"swiglu": {"expansion": grid}},
    }
    spreads = {}
    for trained in (False, True):
        config["budget"] = {"num_params": 27_000_000, "tolerance": 0.02, "trained": trained}
        space = open_space(SpaceConfig(**config))
        target, counts = trained_target(space), []
        for name in space.mixers:
            genome: Genome = repair(space, pure(space, name))
            proxy = to_spec(space, genome, "proxy")
            counts.append(cost.num_params(proxy) - cost.num_embedding_params(proxy))
            ship = cost.num_params(to_spec(space, genome, "ship"))
            assert abs(ship - 27_000_000) <= 0.02 * 27_000_000
        spreads[trained] = (max(counts) - min(counts)) / target
        if trained:
            assert all(abs(count - target) <= 0.02 * target for count in counts)
    assert spreads[False] > 2 * spreads[True]


def test_a_block_that_gains_a_global_mixer_has_as_many_as_its_space_asks() -> None:
    structure = {"halves": ["both", "channel_mixer"], "num_mixers": 2}
    rules = {"structure": structure, "interleaving": {"min_global": 4}}
    space = open_space(SpaceConfig(**(SHARED | {"num_blocks": 4} | rules)))
    for seed in range(8):
        assert_valid(space, sample(space, np.random.default_rng(seed)))


def test_a_given_stack_takes_every_value_that_is_another_at_proxy_width() -> None:
    """Also those of blocks and of the stack, and one that it leaves to its default."""
    swa = {"window": {"ship": 512, "proxy": 32}, "multiplier": {"ship": 0.5, "proxy": 1.0}}
    config = SHARED | {
        "num_blocks": 1,
        "mixers": {"swa": swa},
        "block": {"residual_multiplier": {"ship": 0.2, "proxy": 0.4}},
        "stack": {"embedding_multiplier": {"ship": 12.0, "proxy": 6.0}},
    }
    space = open_space(SpaceConfig(**config))
    block = BlockSpec(
        mixers=(mixer("swa", multiplier=0.5),),
        channel_mixer=ChannelMixerSpec(name="swiglu"),
        residual_multiplier=0.2,
    )
    given = StackSpec(d_model=128, vocab_size=512, blocks=(block,), embedding_multiplier=12.0)
    found = proxied(space, given, 300)
    assert found.blocks[0].mixers[0] == mixer("swa", {"window": 32}, multiplier=1.0)
    assert (found.blocks[0].residual_multiplier, found.embedding_multiplier) == (0.4, 6.0)
