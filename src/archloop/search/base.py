"""What a strategy is: it proposes the next genome from what has been told.

A proposal is a pure function of (seed, trial number, told, pending), so a study that was killed and
resumed goes on as if nothing had happened, and several trials may run at once: the study keeps with
each proposal the numbers of the trials that were told and pending when it was made. What a strategy
remembers between calls is computed from genomes alone and can be forgotten at any time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.ranking.estimate import Estimate
from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objective
from archloop.space.encoding import identity
from archloop.space.genome import Genome
from archloop.space.repair import repair
from archloop.space.space import Space
from archloop.space.variation import mutate, sample

T = TypeVar("T")
ToldState = Literal["complete", "rejected", "unsupported", "diverged", "failed"]
NUM_REMUTATIONS = 20
"""Mutations of a proposal that was tried before, until a random genome takes its place."""
NUM_RANDOM = 300
"""Random genomes drawn in a row that were all tried before, until the space counts as exhausted."""


class SpaceExhaustedError(RuntimeError):
    """Everything that could be proposed has been tried."""


class Told(NamedTuple):
    """What a strategy hears of a finished trial: all that was measured, whatever became of it.

    Attributes:
        number: of the trial.
        genome: that was tried.
        state: rejected means that a budget was broken, before any training; unsupported that a
            required target cannot run the genome's spec, which says nothing of its speed;
            diverged that its training did, so that its quality says nothing of the next one's.
        figures: objectives by name, those that were measured: a rejected trial has latency and
            memory, if it was measured on every target, and no quality.
        margins: by budget, what was measured of it as ``log(value / limit)``: above 0 it is broken.
        replicates: the trial of which this one is another measurement and training.
    """

    number: int
    genome: Genome
    state: ToldState
    figures: Mapping[str, Estimate] = {}
    margins: Mapping[str, Estimate] = {}
    replicates: int | None = None


class Pending(NamedTuple):
    """A trial that was proposed and has not finished."""

    number: int
    genome: Genome
    replicates: int | None = None


class Proposal(NamedTuple):
    """What to try next.

    Attributes:
        genome: to measure and train.
        origin: how it came about (preset, random, mutation, crossover, model, replicate, ...).
        parents: numbers of the trials that it came from.
        replicates: the trial that is to be measured and trained once more, with fresh processes
            and another seed; its genome is that trial's.
    """

    genome: Genome
    origin: str
    parents: tuple[int, ...] = ()
    replicates: int | None = None


class StrategyConfig(BaseModel):
    """Settings of a strategy: the recipe's `strategy:` section without its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Remembered(Generic[T]):
    """A function of genomes that answers at once for a genome object that it has met before."""

    def __init__(self, function: Callable[[Genome], T]) -> None:
        self._function = function
        # Answers are kept by the genome's id. The genome is kept with its answer, or Python might
        # give the same id to a later one.
        self._answers: dict[int, tuple[Genome, T]] = {}

    def __call__(self, genome: Genome) -> T:
        """The function's value."""
        known = self._answers.get(id(genome))
        if known is None:
            known = self._answers[id(genome)] = genome, self._function(genome)
        return known[1]


class Strategy(ABC):
    """Proposes genomes. A subclass writes `propose`; what was tried before is kept out here.

    Args:
        space: to search.
        config: settings; the defaults if None.
        initial: genomes to try first, such as a preset's layout.
        objectives: what is optimised.

    Attributes:
        name: the plug-in's name, set by the registry.
        worst: the reference point by objective, which the study sets before it asks: a trial that
            is not better in every objective adds no hypervolume. None where nobody says.
        allows: whether a genome may be tried, by what the study asks beyond its space, such as that
            a format can say its spec. None: every genome.
        patience: random genomes in a row that were tried or are not allowed, until the space counts
            as exhausted.
    """

    name: ClassVar[str] = ""

    class Config(StrategyConfig):
        """No settings."""

    def __init__(
        self,
        space: Space,
        config: StrategyConfig | None = None,
        initial: Sequence[Genome] = (),
        objectives: Sequence[Objective] = OBJECTIVES,
    ) -> None:
        self.space = space
        self.config = self.Config() if config is None else config
        self.initial = tuple(repair(space, genome) for genome in initial)
        self.objectives = tuple(objectives)
        self.worst: Mapping[str, float] | None = None
        self.allows: Callable[[Genome], bool] | None = None
        self.patience = NUM_RANDOM
        self._identity = Remembered(self.identity)

    def ask(
        self, number: int, seed: int, told: Sequence[Told], pending: Sequence[Pending] = ()
    ) -> Proposal:
        """What trial `number` is to try: a spec that is neither told nor pending, or a replicate.

        Args:
            number: of the new trial.
            seed: of the study.
            told: finished trials, in any order.
            pending: trials that run, likewise.

        Raises:
            SpaceExhaustedError: nothing new was found.
        """
        told = sorted(told, key=lambda entry: entry.number)
        pending = sorted(pending, key=lambda entry: entry.number)
        genomes = [entry.genome for entry in told] + [entry.genome for entry in pending]
        tried = set(map(self._identity, genomes))
        rng = np.random.default_rng([seed, number])
        # Not by number: trials that this strategy did not propose, such as repetitions of others,
        # have numbers too.
        first = next((genome for genome in self.initial if self._may_try(genome, tried)), None)
        if first is not None:
            proposal = Proposal(first, "preset")
        else:
            proposal = self.propose(number, rng, told, pending)
        if proposal.replicates is not None:
            return proposal
        for _ in range(NUM_REMUTATIONS):
            if self._may_try(proposal.genome, tried):
                return proposal
            origin = proposal.origin.removesuffix("+mutation") + "+mutation"
            if proposal.origin in ("random", "mutation"):
                origin = proposal.origin
            child = mutate(self.space, proposal.genome, rng)
            proposal = proposal._replace(genome=child, origin=origin)
        for _ in range(self.patience):
            genome = self.draw(rng)
            if self._may_try(genome, tried):
                return Proposal(genome, "random")
        raise SpaceExhaustedError(
            f"{len(tried)} different specs were tried and {self.patience} random genomes in a "
            "row are among them or not allowed; widen the recipe's space or ask for fewer trials"
        )

    def _may_try(self, genome: Genome, tried: Collection[Hashable]) -> bool:
        if self.identity(genome) in tried:
            return False
        return self.allows is None or self.allows(genome)

    @abstractmethod
    def propose(
        self,
        number: int,
        rng: np.random.Generator,
        told: Sequence[Told],
        pending: Sequence[Pending],
    ) -> Proposal:
        """A genome from `rng`, `told` and `pending` alone; it may have been tried before.

        Args:
            number: of the new trial.
            rng: of this proposal alone.
            told: finished trials by ascending number.
            pending: trials that run, likewise.
        """

    def draw(self, rng: np.random.Generator) -> Genome:
        """A random genome, of the sparse prior unless a strategy says otherwise."""
        return sample(self.space, rng)

    def identity(self, genome: Genome) -> Hashable:
        """What makes two genomes the same trial: their spec at ship scale."""
        return identity(self.space, genome)
