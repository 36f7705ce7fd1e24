"""Random search with the sparse prior: what every other strategy has to beat."""

from collections.abc import Sequence

import numpy as np

from archloop.search.base import Pending, Proposal, Strategy, Told


class RandomSearch(Strategy):
    """Independent samples of the space: a few families first, then their proportions."""

    def propose(
        self,
        number: int,
        rng: np.random.Generator,
        told: Sequence[Told],
        pending: Sequence[Pending],
    ) -> Proposal:
        """A random genome; what was told plays no part."""
        return Proposal(self.draw(rng), "random")
