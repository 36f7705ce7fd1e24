"""How large a space is, and what its prior draws: what a user sees before a search begins."""

import math
from typing import NamedTuple

import numpy as np

from archloop.space.config import BLOCK, Scope
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import sample


class Draws(NamedTuple):
    """What a sample of the prior looks like.

    Attributes:
        num_genomes: that were drawn.
        distinct: different specs at ship width among them.
        with_family: share of the genomes that have each mixer.
        share_of_blocks: of each mixer, over all genomes' blocks.
        families: how many genomes have so many different mixers.
        without_global: share without any mixer that reads every earlier token.
    """

    num_genomes: int
    distinct: int
    with_family: dict[str, float]
    share_of_blocks: dict[str, float]
    families: dict[int, int]
    without_global: float


def log10_size(space: Space) -> float:
    """Common logarithm of the number of genomes, at most: not all keep the rules or the budget."""
    config = space.config
    block = {name: _values(space, name, "block") for name in (*space.mixers, *space.channel_mixers)}
    mixer = sum(block[name] for name in space.mixers)
    mixers = sum(mixer**number for number in config.structure.num_mixers)
    channel = sum(block[name] for name in space.channel_mixers)
    by_half = {"both": mixers * channel, "mixers": mixers, "channel_mixer": channel}
    choices = sum(by_half[half] for half in config.structure.halves) * _values(
        space, BLOCK, "block"
    )
    # A global gene has one value for all families that know it.
    once = math.prod(len(values) for values in space.global_genes.values())
    once *= math.prod(_values(space, name, "family") for name in space.families)
    first, last = config.interleaving.period
    is_periodic = config.interleaving.rule == "periodic"
    stacks = sum(
        sum(choices**period for period in range(first, min(last, depth) + 1))
        if is_periodic
        else choices**depth
        for depth in config.num_blocks
    )
    return math.log10(stacks) + math.log10(once)


def draws(space: Space, seed: int, count: int = 200) -> Draws:
    """A sample of the prior."""
    rng = np.random.default_rng(seed)
    genomes = [sample(space, rng) for _ in range(count)]
    names = [[mixer.name for block in g.blocks for mixer in block.mixers] for g in genomes]
    total = sum(map(len, names))
    numbers = [len(set(own)) for own in names]
    return Draws(
        count,
        len({_digest(space, genome) for genome in genomes}),
        {m: sum(m in own for own in names) / count for m in space.mixers},
        {m: sum(own.count(m) for own in names) / total for m in space.mixers},
        {number: numbers.count(number) for number in sorted(set(numbers))},
        sum(not set(own) & set(space.global_mixers) for own in names) / count,
    )


def _values(space: Space, name: str, scope: Scope) -> int:
    """Combinations of a family's genes of one scope."""
    family = space.families[name]
    return math.prod(len(family.genes[gene]) for gene in family.scoped(scope))


def _digest(space: Space, genome: Genome) -> str:
    return to_spec(space, genome, "ship").digest
