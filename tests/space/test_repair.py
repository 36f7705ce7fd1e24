"""Repair: budget, sharing, interleaving, each against a plain statement of what it must do."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archloop.space.budget import OutOfReachError
from archloop.space.genome import CHANNEL, ChannelGenes, Genome, Slot
from archloop.space.opening import open_space
from archloop.space.repair import repair
from archloop.space.seeding import from_layout, pure
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack import cost
from space.spaces import BUDGET, changed, named

CONVS = ["short_conv"] * 6


def sharing_space(**changes: object) -> Space:
    return open_space(changed(budget=None, interleaving={}, **changes))


def with_mixers(genome: Genome, **changes: dict[str, object]) -> Genome:
    """Fields of a block's mixer replaced by index: ``with_mixers(g, _2={"state_from": 0})``."""
    return _with(genome, 0, changes)


def with_channels(genome: Genome, **changes: dict[str, object]) -> Genome:
    """Fields of a block's channel mixer, likewise."""
    return _with(genome, CHANNEL, changes)


def _with(genome: Genome, slot: Slot, changes: dict[str, dict[str, object]]) -> Genome:
    for index, fields in changes.items():
        at = int(index.removeprefix("_"))
        part = genome.blocks[at].part(slot)
        assert part is not None
        changed = part.model_copy(update=fields)
        genome = genome.with_block(at, genome.blocks[at].with_part(slot, changed))
    return genome


def expansions(genome: Genome) -> list[float]:
    """The free gene by block."""
    return [
        float(str(b.channel_mixer.genes["expansion"])) for b in genome.blocks if b.channel_mixer
    ]


# --- parameter budget ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_blocks_take_at_most_two_adjacent_values_of_the_grid(seed: int) -> None:
    space = named("rich")
    genome = sample(space, np.random.default_rng(seed))
    channels = [b.channel_mixer for b in genome.blocks]
    used = {c.genes["expansion"] for c in channels if c is not None and c.name == "swiglu"}
    assert space.free is not None
    places = sorted(space.free.grid.index(value) for value in used)
    assert len(places) <= 2
    # A genome of sparse blocks alone uses none.
    assert all(above == below + 1 for below, above in itertools.pairwise(places))


def test_no_other_choice_of_two_adjacent_values_is_nearer() -> None:
    space = named("rich")
    genome = from_layout(space, ["gqa", *CONVS[1:]])
    best = abs(cost.num_params(to_spec(space, genome, "ship")) - BUDGET)
    assert space.free is not None
    for low, high in itertools.pairwise(space.free.grid):
        for num_high in range(7):
            changes = {
                f"_{i}": {"genes": {"expansion": high if i < num_high else low}} for i in range(6)
            }
            other = with_channels(genome, **changes)
            assert abs(cost.num_params(to_spec(space, other, "ship")) - BUDGET) >= best


def test_the_larger_value_is_spread_over_the_depth() -> None:
    genome = from_layout(named("rich"), ["gqa", *CONVS[1:]])
    values = expansions(genome)
    high = [i for i, value in enumerate(values) if value == max(values)]
    assert 0 < len(high) < 6
    gaps = np.diff(high)
    assert gaps.max(initial=1) - gaps.min(initial=1) <= 1


@pytest.mark.parametrize("target", [20_000_000, 24_000_000, 28_000_000, 33_000_000])
@pytest.mark.parametrize("tolerance", [0.01, 0.02])
def test_budgets_within_the_grid_are_met(target: int, tolerance: float) -> None:
    space = open_space(changed(budget={"num_params": target, "tolerance": tolerance}))
    for seed in range(20):
        genome = sample(space, np.random.default_rng(seed))
        total = cost.num_params(to_spec(space, genome, "ship"))
        assert abs(total - target) <= tolerance * target


def test_what_borrowers_of_weights_keep_is_in_the_budget() -> None:
    """Their adapters are as wide as the lender's hidden layer."""
    target, tolerance = 14_800_000, 0.02
    swiglu = {"expansion": [1, 1.5, 2, 2.5, 3, 3.5, 4], "adapter_rank": 128}
    config = changed(
        num_blocks=6,
        channel_mixers={"swiglu": swiglu},
        sharing={"channel_weights": True},
        budget={"num_params": target, "tolerance": tolerance},
    )
    space = open_space(config)
    lent = {f"_{i}": {"weights_from": 0} for i in range(1, 6)}
    genome = repair(space, with_channels(pure(space, "gqa"), **lent))
    total = cost.num_params(to_spec(space, genome, "ship"))
    assert abs(total - target) <= tolerance * target


def test_a_layout_without_the_free_family_may_be_out_of_reach() -> None:
    space = named("rich")
    genome = from_layout(space, ["gqa", *CONVS[1:]])
    moe = ChannelGenes(name="moe").model_dump()
    genome = with_channels(genome, **{f"_{i}": moe for i in range(6)})
    with pytest.raises(OutOfReachError, match=r"the budget is 28,000,000 within 1.0%"):
        repair(space, genome)


def test_a_budget_without_room_to_move_is_still_checked() -> None:
    fixed = {"swiglu": {"expansion": 2}}
    with pytest.raises(ValueError, match="no spec meets it"):
        open_space(changed(channel_mixers=fixed, scope={}))
    space = open_space(changed(channel_mixers=fixed, scope={}, budget=None))
    total = cost.num_params(to_spec(space, from_layout(space, ["gqa", *CONVS[1:]]), "ship"))
    met = open_space(changed(channel_mixers=fixed, scope={}, budget={"num_params": total}))
    for seed in range(10):
        genome = sample(met, np.random.default_rng(seed))
        assert abs(cost.num_params(to_spec(met, genome, "ship")) - total) <= 0.01 * total


def test_a_budget_that_few_layouts_meet_is_found_and_met() -> None:
    # Attention and SwiGLU in all twelve blocks: one random layout in a thousand.
    config = {
        "num_blocks": 12, "scope": {}, "sharing": {}, "proxy": {"d_model": 256},
        "mixers": {"short_conv": {}, "swa": {"queries_per_kv": 1}, "gqa": {"queries_per_kv": 4}},
        "channel_mixers": {"swiglu": {"expansion": [2, 2.25]}, "moe": {"num_experts": 4}},
    }  # fmt: skip
    roomy = open_space(changed(**config, budget=None))
    target = cost.num_params(to_spec(roomy, from_layout(roomy, ["gqa"] * 12), "ship"))
    space = open_space(changed(**config, budget={"num_params": target, "tolerance": 0.002}))
    for seed in range(5):
        genome = sample(space, np.random.default_rng(seed))
        assert set(genome.layout) == {"gqa"}
        assert abs(cost.num_params(to_spec(space, genome, "ship")) - target) <= 0.002 * target


# --- sharing ------------------------------------------------------------------------------------


def test_a_source_that_no_longer_fits_gives_way_to_the_nearest_that_does() -> None:
    space = sharing_space()
    layout = ["gqa", "gqa", "short_conv", "gqa", "gqa", "short_conv"]
    genome = with_mixers(from_layout(space, layout), _4={"state_from": 2})
    assert repair(space, genome).blocks[4].mixers[0].state_from == 3


def test_chains_of_sharing_end_at_a_block_of_their_own() -> None:
    space = sharing_space()
    genome = from_layout(space, ["gqa", "gqa", "gqa", *CONVS[:3]])
    genome = with_mixers(genome, _1={"weights_from": 0}, _2={"weights_from": 1})
    assert [b.mixers[0].weights_from for b in repair(space, genome).blocks[:3]] == [None, 0, 0]


@pytest.mark.parametrize("source", [3, 5, -1, 99])
def test_a_source_that_is_not_earlier_is_dropped_where_nothing_fits(source: int) -> None:
    space = sharing_space()
    genome = from_layout(space, ["gqa", *CONVS[:5]])
    repaired = repair(space, with_mixers(genome, _0={"state_from": source}))
    assert repaired.blocks[0].mixers[0].source is None


def test_blocks_with_other_genes_share_nothing() -> None:
    space = sharing_space()
    genome = with_mixers(
        from_layout(space, ["gqa", *CONVS[:5]]), _1={"genes": {"kernel": 7}}, _2={"weights_from": 1}
    )
    assert repair(space, genome).blocks[2].mixers[0].weights_from is None


def test_sharing_that_the_recipe_or_the_mixer_does_not_allow_is_dropped() -> None:
    layout = ["gqa", "gqa", *CONVS[:4]]
    weights_only = sharing_space(sharing={"weights": True})
    genome = with_mixers(from_layout(weights_only, layout), _1={"state_from": 0})
    assert repair(weights_only, genome).blocks[1].mixers[0].source is None
    both = sharing_space()
    genome = with_mixers(from_layout(both, layout), _5={"state_from": 4})
    assert repair(both, genome).blocks[5].mixers[0].source is None, (
        "a short convolution lends no features"
    )


def test_what_is_shared_costs_nothing_and_the_budget_gives_it_to_the_rest() -> None:
    space = named("rich")
    alone = from_layout(space, ["gqa", "gqa", *CONVS[:4]])
    shared = repair(space, with_mixers(alone, _1={"weights_from": 0}))
    totals = [cost.num_params(to_spec(space, g, "ship")) for g in (alone, shared)]
    assert max(totals) - min(totals) < 0.02 * BUDGET
    assert sum(expansions(shared)) > sum(expansions(alone))


# --- interleaving -------------------------------------------------------------------------------


@pytest.mark.parametrize("need", [1, 2, 5, 6])
def test_missing_global_mixers_are_added_and_no_more(need: int) -> None:
    space = open_space(changed(budget=None, interleaving={"min_global": need}, num_blocks=6))
    assert from_layout(space, CONVS).layout.count("gqa") == need
    kept = from_layout(space, ["gqa"] * 6)
    assert kept.layout == ["gqa"] * 6


def test_missing_global_mixers_are_spread_over_the_depth() -> None:
    space = open_space(changed(budget=None, interleaving={"min_global": 3}, num_blocks=12))
    layout = from_layout(space, ["short_conv"] * 12).layout
    assert [i for i, name in enumerate(layout) if name == "gqa"] == [2, 6, 10]


def test_a_periodic_genome_repeats_its_first_blocks() -> None:
    space = named("periodic")
    genome = from_layout(space, ["gqa", "short_conv"] * 3)
    broken = with_mixers(genome, _0={"name": "swa", "genes": {}}, _1={"name": "gqa", "genes": {}})
    assert repair(space, broken).layout == ["swa", "gqa"] * 3


def test_global_mixers_are_added_to_the_pattern_of_a_periodic_genome() -> None:
    space = named("periodic")
    assert from_layout(space, CONVS).layout == ["short_conv", "gqa"] * 3
