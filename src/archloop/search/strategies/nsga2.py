"""NSGA-II over genomes in steady state (Deb et al. 2002).

Constrained non-dominated sorting and crowding distance, binary tournaments. There are no
generations: the parents of every new trial are the best of all that has been told, so a slow trial
holds nobody up. A trial inside the reference point comes before one that is worse somewhere than
the worst that counts, and a rejected one behind every feasible one, the nearer to its budgets the
better. A trial that failed or whose training diverged is no parent.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from archloop.search import history
from archloop.search.base import Pending, Proposal, Strategy, StrategyConfig, Told
from archloop.space.variation import crossover, mutate


class NSGA2(Strategy):
    """Evolution with structure-aware mutation and crossover, from the sparse prior."""

    class Config(StrategyConfig):
        """Probabilities per child; a child that neither would change is mutated.

        Attributes:
            population: parents, and trials before evolution starts.
            crossover: chance of two-point crossover.
            mutation: chance of a mutation.
        """

        population: Annotated[int, Field(ge=2)] = 16
        crossover: Annotated[float, Field(ge=0, le=1)] = 0.7
        mutation: Annotated[float, Field(ge=0, le=1)] = 0.9

    def propose(
        self,
        number: int,
        rng: np.random.Generator,
        told: Sequence[Told],
        pending: Sequence[Pending],
    ) -> Proposal:
        """A random genome at first, then a child of the best trials told."""
        config = self.config
        assert isinstance(config, NSGA2.Config)
        parents = history.best(history.merged(told), self.objectives, config.population, self.worst)
        if number < config.population or len(parents) < 2:
            return Proposal(self.draw(rng), "random")
        first, second = (parents[tournament(len(parents), rng)] for _ in range(2))
        genome, origin = first.genome, "mutation"
        numbers: tuple[int, ...] = (first.number,)
        if first.number != second.number and rng.random() < config.crossover:
            genome = crossover(self.space, first.genome, second.genome, rng)
            origin, numbers = "crossover", (first.number, second.number)
        if origin == "mutation" or rng.random() < config.mutation:
            genome = mutate(self.space, genome, rng)
            origin = origin if origin == "mutation" else "crossover+mutation"
        return Proposal(genome, origin, numbers)


def tournament(count: int, rng: np.random.Generator) -> int:
    """The better of two random places in an order from best to worst."""
    return int(rng.integers(count, size=2).min())
