"""Repair: budget, sharing, interleaving, each against a plain statement of what it must do."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archloop.space.genome import Genome
from archloop.space.space import OutOfReachError, Space
from archloop.stack import cost
from space.spaces import BUDGET, changed, named

CONVS = ["short_conv"] * 6


def sharing_space(**changes: object) -> Space:
    return Space(changed(budget=None, interleaving={}, **changes))


def with_blocks(genome: Genome, **changes: dict[str, object]) -> Genome:
    """Block fields replaced by index: ``with_blocks(g, _2={"state_from": 0})``."""
    blocks = list(genome.blocks)
    for index, fields in changes.items():
        at = int(index.removeprefix("_"))
        blocks[at] = blocks[at].model_copy(update=fields)
    return genome.replace(blocks=tuple(blocks))


# --- parameter budget ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_blocks_take_at_most_two_adjacent_values_of_the_grid(seed: int) -> None:
    space = named("rich")
    genome = space.sample(np.random.default_rng(seed))
    used = {b.channel_genes["expansion"] for b in genome.blocks if b.channel_mixer == "swiglu"}
    places = sorted(space.free_grid.index(value) for value in used)
    assert len(places) <= 2
    # A genome of sparse blocks alone uses none.
    assert all(above == below + 1 for below, above in itertools.pairwise(places))


def test_no_other_choice_of_two_adjacent_values_is_nearer() -> None:
    space = named("rich")
    genome = space.from_layout(["gqa", *CONVS[1:]])
    best = abs(cost.num_params(space.to_spec(genome, "ship")) - BUDGET)
    for low, high in itertools.pairwise(space.free_grid):
        for num_high in range(7):
            changes = {
                f"_{i}": {"channel_genes": {"expansion": high if i < num_high else low}}
                for i in range(6)
            }
            other = with_blocks(genome, **changes)
            assert abs(cost.num_params(space.to_spec(other, "ship")) - BUDGET) >= best


def test_the_larger_value_is_spread_over_the_depth() -> None:
    genome = named("rich").from_layout(["gqa", *CONVS[1:]])
    values = [block.channel_genes["expansion"] for block in genome.blocks]
    high = [i for i, value in enumerate(values) if value == max(values)]
    assert 0 < len(high) < 6
    gaps = np.diff(high)
    assert gaps.max(initial=1) - gaps.min(initial=1) <= 1


@pytest.mark.parametrize("target", [20_000_000, 24_000_000, 28_000_000, 33_000_000])
@pytest.mark.parametrize("tolerance", [0.01, 0.02])
def test_budgets_within_the_grid_are_met(target: int, tolerance: float) -> None:
    space = Space(changed(budget={"num_params": target, "tolerance": tolerance}))
    for seed in range(20):
        genome = space.sample(np.random.default_rng(seed))
        total = cost.num_params(space.to_spec(genome, "ship"))
        assert abs(total - target) <= tolerance * target


def test_a_layout_without_the_free_family_may_be_out_of_reach() -> None:
    space = named("rich")
    genome = space.from_layout(["gqa", *CONVS[1:]])
    moe = {"channel_mixer": "moe", "channel_genes": {}}
    genome = with_blocks(genome, **{f"_{i}": moe for i in range(6)})
    with pytest.raises(OutOfReachError, match=r"the budget is 28,000,000 within 1.0%"):
        space.repair(genome)


def test_a_budget_without_room_to_move_is_still_checked() -> None:
    fixed = {"swiglu": {"expansion": 2}}
    with pytest.raises(ValueError, match="no spec meets it"):
        Space(changed(channel_mixers=fixed, scope={}))
    space = Space(changed(channel_mixers=fixed, scope={}, budget=None))
    total = cost.num_params(space.to_spec(space.from_layout(["gqa", *CONVS[1:]]), "ship"))
    met = Space(changed(channel_mixers=fixed, scope={}, budget={"num_params": total}))
    for seed in range(10):
        genome = met.sample(np.random.default_rng(seed))
        assert abs(cost.num_params(met.to_spec(genome, "ship")) - total) <= 0.01 * total


def test_a_budget_that_few_layouts_meet_is_found_and_met() -> None:
    # Attention and SwiGLU in all twelve blocks: one random layout in a thousand.
    config = {
        "num_blocks": 12, "scope": {}, "sharing": {}, "proxy": {"d_model": 256},
        "mixers": {"short_conv": {}, "swa": {"queries_per_kv": 1}, "gqa": {"queries_per_kv": 4}},
        "channel_mixers": {"swiglu": {"expansion": [2, 2.25]}, "moe": {"num_experts": 4}},
    }  # fmt: skip
    roomy = Space(changed(**config, budget=None))
    target = cost.num_params(roomy.to_spec(roomy.from_layout(["gqa"] * 12), "ship"))
    space = Space(changed(**config, budget={"num_params": target, "tolerance": 0.002}))
    for seed in range(5):
        genome = space.sample(np.random.default_rng(seed))
        assert set(genome.layout) == {"gqa"}
        assert abs(cost.num_params(space.to_spec(genome, "ship")) - target) <= 0.002 * target


# --- sharing ------------------------------------------------------------------------------------


def test_a_source_that_no_longer_fits_gives_way_to_the_nearest_that_does() -> None:
    space = sharing_space()
    layout = ["gqa", "gqa", "short_conv", "gqa", "gqa", "short_conv"]
    genome = with_blocks(space.from_layout(layout), _4={"state_from": 2})
    assert space.repair(genome).blocks[4].state_from == 3


def test_chains_of_sharing_end_at_a_block_of_their_own() -> None:
    space = sharing_space()
    genome = space.from_layout(["gqa", "gqa", "gqa", *CONVS[:3]])
    genome = with_blocks(genome, _1={"weights_from": 0}, _2={"weights_from": 1})
    assert [b.weights_from for b in space.repair(genome).blocks[:3]] == [None, 0, 0]


@pytest.mark.parametrize("source", [3, 5, -1, 99])
def test_a_source_that_is_not_earlier_is_dropped_where_nothing_fits(source: int) -> None:
    space = sharing_space()
    genome = space.from_layout(["gqa", *CONVS[:5]])
    repaired = space.repair(with_blocks(genome, _0={"state_from": source}))
    assert repaired.blocks[0].source is None


def test_blocks_with_other_genes_share_nothing() -> None:
    space = sharing_space()
    genome = with_blocks(
        space.from_layout(["gqa", *CONVS[:5]]), _1={"genes": {"kernel": 7}}, _2={"weights_from": 1}
    )
    assert space.repair(genome).blocks[2].weights_from is None


def test_sharing_that_the_recipe_or_the_mixer_does_not_allow_is_dropped() -> None:
    layout = ["gqa", "gqa", *CONVS[:4]]
    weights_only = sharing_space(sharing={"weights": True})
    genome = with_blocks(weights_only.from_layout(layout), _1={"state_from": 0})
    assert weights_only.repair(genome).blocks[1].source is None
    both = sharing_space()
    genome = with_blocks(both.from_layout(layout), _5={"state_from": 4})
    assert both.repair(genome).blocks[5].source is None, "a short convolution lends no features"


def test_what_is_shared_costs_nothing_and_the_budget_gives_it_to_the_rest() -> None:
    space = named("rich")
    alone = space.from_layout(["gqa", "gqa", *CONVS[:4]])
    shared = space.repair(with_blocks(alone, _1={"weights_from": 0}))
    totals = [cost.num_params(space.to_spec(g, "ship")) for g in (alone, shared)]
    assert max(totals) - min(totals) < 0.02 * BUDGET
    widths = [
        sum(float(str(b.channel_genes["expansion"])) for b in g.blocks) for g in (alone, shared)
    ]
    assert widths[1] > widths[0]


# --- interleaving -------------------------------------------------------------------------------


@pytest.mark.parametrize("need", [1, 2, 5, 6])
def test_missing_global_mixers_are_added_and_no_more(need: int) -> None:
    space = Space(changed(budget=None, interleaving={"min_global": need}, num_blocks=6))
    assert space.from_layout(CONVS).layout.count("gqa") == need
    kept = space.from_layout(["gqa"] * 6)
    assert kept.layout == ["gqa"] * 6


def test_a_periodic_genome_repeats_its_first_blocks() -> None:
    space = named("periodic")
    genome = space.from_layout(["gqa", "short_conv"] * 3)
    broken = with_blocks(genome, _0={"mixer": "swa", "genes": {}}, _1={"mixer": "gqa", "genes": {}})
    assert space.repair(broken).layout == ["swa", "gqa"] * 3


def test_global_mixers_are_added_to_the_pattern_of_a_periodic_genome() -> None:
    space = named("periodic")
    assert space.from_layout(CONVS).layout == ["short_conv", "gqa"] * 3
