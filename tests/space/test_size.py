"""How large a space is said to be, and what its prior is said to draw."""

import math

import pytest

from archloop.space import size
from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from space.spaces import SMALL


def test_a_small_space_is_counted_as_it_is() -> None:
    """Two kernels by block and one attention: 3 choices a block, at depths 1 and 2."""
    space = open_space(SpaceConfig(**SMALL | {"scope": {"kernel": "block"}}))
    assert size.log10_size(space) == pytest.approx(math.log10(3 + 9))


def test_a_gene_that_varies_once_counts_once() -> None:
    by_family = open_space(SpaceConfig(**SMALL | {"scope": {"kernel": "family"}}))
    # 2 mixers a block, and one kernel for all of them.
    assert size.log10_size(by_family) == pytest.approx(math.log10(2 * (2 + 4)))


def test_a_gene_of_several_families_counts_once() -> None:
    heads = {"head_dim": [32, 64]}
    mixers = {"gqa": heads, "swa": {**heads, "window": 32}}
    space = open_space(SpaceConfig(**SMALL | {"mixers": mixers, "scope": {"head_dim": "global"}}))
    assert size.log10_size(space) == pytest.approx(math.log10(2 * (2 + 4)))


def test_a_periodic_space_counts_its_periods() -> None:
    periodic = SMALL | {
        "num_blocks": [4],
        "scope": {"kernel": "block"},
        "interleaving": {"rule": "periodic", "period": [1, 2]},
    }
    assert size.log10_size(open_space(SpaceConfig(**periodic))) == pytest.approx(math.log10(3 + 9))


def test_the_gene_that_the_budget_sets_multiplies_nothing() -> None:
    changes = {
        "channel_mixers": {"swiglu": {"expansion": [1, 2, 3]}},
        "budget": {"num_params": 700_000, "tolerance": 0.9},
    }
    space = open_space(SpaceConfig(**SMALL | changes))
    assert space.free is not None
    assert size.log10_size(space) == pytest.approx(math.log10(3 + 9))


def test_parallel_mixers_have_no_order() -> None:
    space = open_space(SpaceConfig(**SMALL | {"num_blocks": 1, "structure": {"num_mixers": 2}}))
    # Of three choices, two with repetition.
    assert size.log10_size(space) == pytest.approx(math.log10(6))


def test_a_space_of_a_thousand_blocks_is_described() -> None:
    space = open_space(SpaceConfig(**SMALL | {"num_blocks": 1024}))
    assert size.log10_size(space) == pytest.approx(1024 * math.log10(3))
    assert "about 10^488.6 layouts" in space.describe()


def test_draws_of_the_prior_add_up() -> None:
    found = size.draws(open_space(SpaceConfig(**SMALL)), seed=0, count=100)
    assert sum(found.families.values()) == found.num_genomes == 100
    assert sum(found.share_of_blocks.values()) == pytest.approx(1)
    assert 1 < found.distinct <= 12
    # A pure stack of convolutions is one that no mixer reads every token of.
    assert 0 < found.without_global == pytest.approx(1 - found.with_family["gqa"])
