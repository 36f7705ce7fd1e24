"""Random search with the uniform prior, kept as the yardstick of published comparisons.

Proportions are drawn over all families at once, so that a stack of two families, as most published
hybrids are, is drawn about once in five thousand times from seven families and sixteen blocks.
"""

from collections.abc import Sequence

import numpy as np

from archloop.search.base import Pending, Proposal, Strategy, Told
from archloop.space.genome import Genome
from archloop.space.prior import uniform
from archloop.space.variation import sample


class UniformSearch(Strategy):
    """Independent samples of the space, every family as likely in every block as any other."""

    def draw(self, rng: np.random.Generator) -> Genome:
        """A random genome of the uniform prior."""
        return sample(self.space, rng, uniform)

    def propose(
        self,
        number: int,
        rng: np.random.Generator,
        told: Sequence[Told],
        pending: Sequence[Pending],
    ) -> Proposal:
        """A random genome; what was told plays no part."""
        return Proposal(self.draw(rng), "random")
