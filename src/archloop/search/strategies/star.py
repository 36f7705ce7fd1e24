"""STAR's scheme (arXiv 2411.17800): NSGA-II in generations, with few mutations and two elites.

What is published of it: population 16, 18 generations, two-point crossover, 10% mutation, 2 elites;
synthesis over the full width and depth of the backbone was the best of those tried.

What is not published, and how it is settled here: how the first population is drawn (uniformly);
whether 10% is the chance of a genome or of each of its genes (of a genome); how parents are chosen
(binary tournaments by rank and crowding, as in NSGA-II); whether elites are measured again (they
are not, they stand in the next population as they are); what becomes of a genome that breaks a
constraint (it stands behind all others); whether the population of a generation is its children
alone (its children and the elites). STAR's own genome encodes operators of one class of
linear input-varying systems; here it is the space of this study.

A generation consists of the trials with the numbers that fall to it, told or not: with several
trials at once, a proposal sees as much of the last generation as has finished.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from archloop.search import history
from archloop.search.base import Pending, Proposal, Strategy, StrategyConfig, Told
from archloop.search.history import Tried
from archloop.search.strategies.nsga2 import tournament
from archloop.space.genome import Genome
from archloop.space.prior import uniform
from archloop.space.variation import crossover, mutate, sample


class STAR(Strategy):
    """Generations of children of the generation before."""

    class Config(StrategyConfig):
        """As published.

        Attributes:
            population: genomes of a generation, elites among them.
            elites: the best of a generation, which stand in the next one too.
            mutation: chance that a child is mutated.
        """

        population: Annotated[int, Field(ge=2)] = 16
        elites: Annotated[int, Field(ge=0)] = 2
        mutation: Annotated[float, Field(ge=0, le=1)] = 0.1

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
        """A random genome in the first generation, then a child of two of the last one."""
        config = self.config
        assert isinstance(config, STAR.Config)
        parents = self._population(history.merged(told), self._generation(number) - 1)
        if number < config.population or len(parents) < 2:
            return Proposal(self.draw(rng), "random")
        first, second = (parents[tournament(len(parents), rng)] for _ in range(2))
        genome = crossover(self.space, first.genome, second.genome, rng)
        origin, numbers = "crossover", (first.number, second.number)
        if rng.random() < config.mutation:
            genome, origin = mutate(self.space, genome, rng), "crossover+mutation"
        return Proposal(genome, origin, tuple(dict.fromkeys(numbers)))

    def _generation(self, number: int) -> int:
        """Which generation a trial is of: the first has no elites from before."""
        config = self.config
        assert isinstance(config, STAR.Config)
        if number < config.population:
            return 0
        children = max(1, config.population - config.elites)
        return 1 + (number - config.population) // children

    def _population(self, tried: Sequence[Tried], generation: int) -> list[Tried]:
        """The members of a generation, best first."""
        config = self.config
        assert isinstance(config, STAR.Config)
        elites: list[Tried] = []
        ordered: list[Tried] = []
        for index in range(generation + 1):
            children = [entry for entry in tried if self._generation(entry.number) == index]
            ordered = history.best(
                [*elites, *children], self.objectives, config.population, self.worst
            )
            elites = ordered[: config.elites]
        return ordered
