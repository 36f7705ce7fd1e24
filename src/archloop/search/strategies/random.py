"""Random search: the baseline that every other strategy has to beat."""

from collections.abc import Sequence

import numpy as np

from archloop.search.base import Proposal, Strategy, Told
from archloop.space.variation import sample


class RandomSearch(Strategy):
    """Independent samples of the space."""

    def propose(self, number: int, rng: np.random.Generator, history: Sequence[Told]) -> Proposal:
        """A random genome; the history plays no part."""
        return Proposal(sample(self.space, rng), "random")
