"""What a strategy is: it proposes the next genome from what has been told.

A proposal is a pure function of (seed, trial number, told history), so a study that was killed and
resumed goes on as if nothing had happened, and several workers need no common memory. What a
strategy remembers between calls is a cache that the history alone can rebuild.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.space.genome import Genome
from archloop.space.repair import repair
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import mutate, sample

ToldState = Literal["complete", "rejected", "unsupported", "failed"]
NUM_REMUTATIONS = 20
"""Mutations of a proposal that was tried before, until a random genome takes its place."""
NUM_RANDOM = 300
"""Random genomes drawn in a row that were all tried before, until the space counts as exhausted."""


class SpaceExhaustedError(RuntimeError):
    """Everything that could be proposed has been tried."""


class Told(NamedTuple):
    """What a strategy hears of a finished trial.

    Attributes:
        number: of the trial.
        genome: that was tried.
        state: rejected means that a budget was broken, before any training; unsupported that a
            required target cannot run the genome's spec, which says nothing of its speed.
        values: quality (up), latency and memory (down), of a complete trial.
        excess: by how much budgets are exceeded, relative to their limits; 0 if they are kept.
    """

    number: int
    genome: Genome
    state: ToldState
    values: tuple[float, float, float] | None = None
    excess: float = 0.0


class Proposal(NamedTuple):
    """A genome to try, how it came about (preset, random, mutation, ...) and from which trials."""

    genome: Genome
    origin: str
    parents: tuple[int, ...] = ()


class StrategyConfig(BaseModel):
    """Settings of a strategy: the recipe's `strategy:` section without its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Strategy(ABC):
    """Proposes genomes. A subclass writes `propose`; what was tried before is kept out here.

    Args:
        space: to search.
        config: settings; the defaults if None.
        initial: genomes to try first, such as a preset's layout.

    Attributes:
        name: the plug-in's name, set by the registry.
    """

    name: ClassVar[str] = ""

    class Config(StrategyConfig):
        """No settings."""

    def __init__(
        self,
        space: Space,
        config: StrategyConfig | None = None,
        initial: Sequence[Genome] = (),
    ) -> None:
        self.space = space
        self.config = self.Config() if config is None else config
        self.initial = tuple(repair(space, genome) for genome in initial)
        self._known: dict[int, Told] = {}
        self._tried: set[str] = set()

    def ask(self, number: int, seed: int, history: Sequence[Told]) -> Proposal:
        """The genome of trial `number`, one whose spec at ship scale is not in the history.

        Args:
            number: of the new trial.
            seed: of the study.
            history: finished trials in any order; trials still running are simply absent.

        Raises:
            SpaceExhaustedError: nothing new was found.
        """
        self._catch_up(history)
        rng = np.random.default_rng([seed, number])
        if number < len(self.initial):
            proposal = Proposal(self.initial[number], "preset")
        else:
            proposal = self.propose(number, rng, history)
        for _ in range(NUM_REMUTATIONS):
            if self.digest(proposal.genome) not in self._tried:
                return proposal
            origin = proposal.origin.removesuffix("+mutation") + "+mutation"
            if proposal.origin in ("random", "mutation"):
                origin = proposal.origin
            proposal = proposal._replace(
                genome=mutate(self.space, proposal.genome, rng), origin=origin
            )
        for _ in range(NUM_RANDOM):
            genome = sample(self.space, rng)
            if self.digest(genome) not in self._tried:
                return Proposal(genome, "random")
        raise SpaceExhaustedError(
            f"{len(self._tried)} different specs were tried and {NUM_RANDOM} random genomes in a "
            "row are among them; widen the recipe's space or ask for fewer trials"
        )

    @abstractmethod
    def propose(self, number: int, rng: np.random.Generator, history: Sequence[Told]) -> Proposal:
        """A genome from `rng` and the history alone; it may have been tried before."""

    def tell(self, told: Told) -> None:  # noqa: B027  (a strategy may need no news)
        """A trial has finished. Nothing to do: `ask` is given the whole history."""

    def digest(self, genome: Genome) -> str:
        """What makes two genomes the same trial: their spec at ship scale."""
        return to_spec(self.space, genome, "ship").digest

    def remember(self, new: Sequence[Told]) -> None:  # noqa: B027  (it may keep no caches)
        """Take entries into the caches; called once with each entry of the history."""

    def forget(self) -> None:  # noqa: B027  (likewise)
        """Empty the caches: another history follows."""

    def _catch_up(self, history: Sequence[Told]) -> None:
        """Bring the caches to this history, from scratch unless it only adds to the last one."""
        new = [told for told in history if self._known.get(told.number) != told]
        if len(history) - len(new) != len(self._known):
            self._known, self._tried, new = {}, set(), list(history)
            self.forget()
        self._known.update((told.number, told) for told in new)
        self._tried.update(self.digest(told.genome) for told in new)
        self.remember(new)


def minimised(values: tuple[float, float, float]) -> tuple[float, float, float]:
    """(quality, latency, memory) with quality negated, so that less of everything is better."""
    quality, latency, memory = values
    return -quality, latency, memory
