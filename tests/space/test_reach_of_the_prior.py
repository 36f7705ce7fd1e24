"""What the prior draws and what operators reach: sparse stacks, whole families, new specs."""

import itertools
from typing import Any

import numpy as np
import pytest

from archloop.space import prior
from archloop.space.config import SpaceConfig
from archloop.space.encoding import identity
from archloop.space.opening import open_space
from archloop.space.operators import replace_family
from archloop.space.seeding import from_layout
from archloop.space.space import Space
from archloop.space.variation import crossover, mutate, sample

FAMILIES = ("short_conv", "gqa", "swa", "gla", "mamba2", "s5", "gated_deltanet")


def space(**changes: Any) -> Space:
    """16 blocks of seven families, as the strategies' benchmark has it."""
    plain = {
        "ship": {"d_model": 1024, "vocab_size": 65536},
        "proxy": {"d_model": 128},
        "num_blocks": [16],
        "mixers": {name: {} for name in FAMILIES},
        "channel_mixers": {"swiglu": {"expansion": [2.0, 3.0, 4.0]}},
        **changes,
    }
    return open_space(SpaceConfig.model_validate(plain))


def test_the_prior_draws_stacks_of_few_families() -> None:
    """Convolution and attention alone: 2 in 10,000 stacks drawn over all families at once."""
    whole, rng = space(), np.random.default_rng(0)
    drawn = [set(sample(whole, rng).layout) for _ in range(400)]
    assert max(map(len, drawn)) <= 3
    assert sum(families == {"short_conv", "gqa"} for families in drawn) >= 4
    spread = [set(sample(whole, rng, prior.uniform).layout) for _ in range(60)]
    assert np.median([len(families) for families in spread]) >= 5


def test_an_operator_replaces_every_block_of_a_family() -> None:
    whole, rng = space(), np.random.default_rng(1)
    genome = from_layout(whole, ["short_conv", "gla", "gqa", "gla"] * 4)
    gone = 0
    for _ in range(20):
        child = replace_family(whole, genome, rng)
        assert child is not None
        lost = set(genome.layout) - set(child.layout)
        assert len(lost) == 1
        old = lost.pop()
        at = [name for name, was in zip(child.layout, genome.layout, strict=True) if was == old]
        assert len(set(at)) == 1
        gone += old == "gla"
    assert gone


@pytest.mark.parametrize("rule", ["free", "periodic"])
def test_what_varies_is_the_spec_and_not_the_genome_alone(rule: str) -> None:
    """In periodic spaces half of all crossed genomes were a parent's spec once more."""
    whole, rng = space(interleaving={"rule": rule}), np.random.default_rng(2)
    genomes = [sample(whole, rng) for _ in range(24)]
    for genome in genomes:
        assert identity(whole, mutate(whole, genome, rng)) != identity(whole, genome)
    same = total = 0
    for a, b in itertools.pairwise(genomes):
        parents = {identity(whole, a), identity(whole, b)}
        if len(parents) == 2:
            total += 1
            same += identity(whole, crossover(whole, a, b, rng)) in parents
    assert same <= total / 4
