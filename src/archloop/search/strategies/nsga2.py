"""NSGA-II over genomes, as STAR evolves its backbones (arXiv 2411.17800), in steady state.

Deb et al. 2002: constrained non-dominated sorting and crowding distance, binary tournaments. There
are no generations: the parents of every new trial are the best of all that has been told, so a
proposal needs the history alone and a slow trial holds nobody up. A rejected trial takes part,
behind every feasible one and the nearer to its budgets the better.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from archloop.ranking import front
from archloop.search.base import Proposal, Strategy, StrategyConfig, Told, minimised
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.variation import crossover, mutate, sample


class NSGA2(Strategy):
    """Evolution with structure-aware mutation and crossover."""

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

    def __init__(
        self,
        space: Space,
        config: StrategyConfig | None = None,
        initial: Sequence[Genome] = (),
    ) -> None:
        super().__init__(space, config, initial)
        assert isinstance(self.config, NSGA2.Config)
        self._population, self._crossover = self.config.population, self.config.crossover
        self._mutation = self.config.mutation
        self._entries: list[Told] = []
        self._points: NDArray[np.float64] = np.empty((0, 3))
        self._excess: NDArray[np.float64] = np.empty(0)
        self._numbers: NDArray[np.int64] = np.empty(0, np.int64)

    def propose(self, number: int, rng: np.random.Generator, history: Sequence[Told]) -> Proposal:
        """A random genome at first, then a child of the best trials told."""
        parents = self._parents()
        if number < self._population or len(parents) < 2:
            return Proposal(sample(self.space, rng), "random")
        first, second = (parents[_tournament(len(parents), rng)] for _ in range(2))
        genome, origin = first.genome, "mutation"
        numbers: tuple[int, ...] = (first.number,)
        if first.number != second.number and rng.random() < self._crossover:
            genome = crossover(self.space, first.genome, second.genome, rng)
            origin, numbers = "crossover", (first.number, second.number)
        if origin == "mutation" or rng.random() < self._mutation:
            genome = mutate(self.space, genome, rng)
            origin = origin if origin == "mutation" else "crossover+mutation"
        return Proposal(genome, origin, numbers)

    def remember(self, new: Sequence[Told]) -> None:
        """Keep the objective values and constraint excess of all that can be ranked."""
        usable = [told for told in new if _rankable(told)]
        if not usable:
            return
        nothing = (np.nan,) * 3
        rows = [nothing if t.values is None else minimised(t.values) for t in usable]
        self._entries.extend(usable)
        self._points = np.concatenate([self._points, np.array(rows)])
        self._excess = np.concatenate([self._excess, [t.excess for t in usable]])
        self._numbers = np.concatenate([self._numbers, [t.number for t in usable]])

    def forget(self) -> None:
        """Empty the arrays."""
        self._entries = []
        self._points, self._excess = np.empty((0, 3)), np.empty(0)
        self._numbers = np.empty(0, np.int64)

    def _parents(self) -> list[Told]:
        """The best of all that was told, best first; the order of telling plays no part."""
        by_number = np.argsort(self._numbers)
        order = constrained_order(
            self._points[by_number], self._excess[by_number], self._population
        )
        return [self._entries[i] for i in by_number[order]]


def constrained_order(
    points: NDArray[np.float64], excess: NDArray[np.float64], count: int
) -> NDArray[np.int64]:
    """Indices of the best `count`, best first.

    Feasible points come first, by non-domination rank and then crowding distance; the others
    follow by their excess. Ties keep the given order.

    Args:
        points: minimised, (N, M); of infeasible ones anything.
        excess: of the constraints, (N,); 0 where they are kept.
        count: at most so many.
    """
    feasible, broken = np.flatnonzero(excess <= 0), np.flatnonzero(excess > 0)
    kept = feasible[front.selected(points[feasible], count)]
    nearest = broken[np.argsort(excess[broken], kind="stable")]
    return np.concatenate([kept, nearest])[:count]


def _rankable(told: Told) -> bool:
    """Neither failed nor without anything to be compared by."""
    if told.state == "failed":
        return False
    if told.excess > 0:
        return bool(np.isfinite(told.excess))
    return told.values is not None and bool(np.isfinite(told.values).all())


def _tournament(count: int, rng: np.random.Generator) -> int:
    """The better of two random places in an order from best to worst."""
    return int(rng.integers(count, size=2).min())
