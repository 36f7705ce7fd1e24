"""How large a space is, and what its prior draws: what a user sees before a search begins."""

import math
from typing import NamedTuple

import numpy as np

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
    """Common logarithm of the number of genomes, at most: not all keep the rules or the budget.

    What blocks share is left aside, and so is the gene that repair sets by the budget.
    """
    return math.log10(space.size)


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


def _digest(space: Space, genome: Genome) -> str:
    return to_spec(space, genome, "ship").digest
