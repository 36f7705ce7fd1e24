"""Search by a surrogate: what is measured of each trial says what to expect of its children.

1. The first trials are random, of the sparse prior; as soon as budgets were measured, random
   genomes are drawn until one is likely to keep them.
2. Then a Gaussian process is believed of each objective and each budget over features of genomes
   (`search.beliefs`), with the noise that is known of each trial. Rejected trials were measured
   too, so they say what breaks a budget.
3. Candidates are children of the front, with a share of random genomes, and then children of the
   candidates that promise most. What a candidate promises is the hypervolume that it is expected
   to add, times the probability that it keeps the budgets. Trials that run count as if they had
   come out as believed, so that workers that ask at once are told to try different things.
4. Every fifth trial measures and trains a member of the front once more, that with the largest
   product of the probability that it belongs there and of what is not known of it: a front that
   is never measured again is a front of lucky trials.
"""

from collections.abc import Hashable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from archloop.ranking import front
from archloop.ranking.improvement import improvements
from archloop.search import history
from archloop.search.base import Pending, Proposal, Remembered, Strategy, StrategyConfig, Told
from archloop.search.beliefs import Beliefs, Believer
from archloop.search.history import Tried
from archloop.space.features import features
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.variation import crossover, mutate

Floats = NDArray[np.float64]
NUM_PARENTS = 16
"""Best trials whose children are candidates."""
RANDOM_SHARE = 0.15
"""Share of random genomes among the first candidates."""
CROSSOVER = 0.3
"""Chance that a candidate has two parents."""
ROUNDS = 3
"""Generations of candidates: those after the first are children of the most promising so far."""
NUM_PROMISING = 8
"""Candidates, the most promising so far, whose children are the next generation."""
MAX_TRIALS = 300
"""Trials that a posterior rests on: the best and the latest; more would take seconds a proposal."""
NUM_DRAWS = 64
"""Draws over which gains and probabilities of belonging to the front are averaged."""
MIN_TRAINED = 3
"""Trained trials without which there is no model of quality."""
LIKELY = 0.5
"""Probability of keeping the budgets with which a random genome is tried."""
MAX_RANDOM = 64
"""Random genomes drawn for one that is likely to keep the budgets."""


class Candidate(NamedTuple):
    """A genome that may be proposed.

    Attributes:
        parents: numbers of the trials that it descends from; none if it is random.
        gain: hypervolume that it is expected to add.
    """

    genome: Genome
    parents: tuple[int, ...]
    gain: float = 0.0


class Model(Strategy):
    """Gaussian processes, expected improvement of hypervolume, replicates of the front."""

    class Config(StrategyConfig):
        """How much is random, compared and replicated.

        Attributes:
            start: random trials before the model is asked, initial genomes among them.
            candidates: compared for each proposal.
            replicate_every: so many trials, the last is a replicate; at least 2, or 0 for none.
        """

        start: Annotated[int, Field(ge=4)] = 8
        candidates: Annotated[int, Field(ge=8, le=4096)] = 96
        replicate_every: Annotated[int, Field(ge=0)] = 5

        @field_validator("replicate_every")
        @classmethod
        def _check_replicates(cls, every: int) -> int:
            if every == 1:
                raise ValueError("leaves no trial for anything new; give 0, or 2 or more")
            return every

    def __init__(self, space: Space, *arguments: Any, **options: Any) -> None:
        super().__init__(space, *arguments, **options)
        self._features = Remembered(lambda genome: features(space, genome))
        self._believe = Believer(self._features)

    def propose(
        self,
        number: int,
        rng: np.random.Generator,
        told: Sequence[Told],
        pending: Sequence[Pending],
    ) -> Proposal:
        """The candidate that promises most, or a replicate."""
        config = self.config
        assert isinstance(config, Model.Config)
        # A trial that broke a budget on its first target has no figure over all targets.
        tried = [entry for entry in history.merged(told) if entry.figures or entry.margins]
        beliefs = self._believe(self._kept(tried), [o.name for o in self.objectives])
        trained = beliefs.trained(tried)
        enough = len(trained) >= MIN_TRAINED and len(beliefs.objectives) == len(self.objectives)
        if number < config.start or not enough:
            return Proposal(self._likely(beliefs, rng), "random")
        every = config.replicate_every
        if every and number % every == every - 1:
            again = self._replicate(trained, beliefs, pending, rng)
            if again is not None:
                return again
        known = {self._identity(entry.genome) for entry in told}
        known |= {self._identity(entry.genome) for entry in pending}
        chosen = self._search(beliefs, tried, known, pending, rng)
        return Proposal(
            chosen.genome, "model" if chosen.parents else "model+random", chosen.parents
        )

    def _kept(self, tried: Sequence[Tried]) -> list[Tried]:
        """The trials that beliefs rest on."""
        if len(tried) <= MAX_TRIALS:
            return list(tried)
        chosen = history.best(tried, self.objectives, MAX_TRIALS // 2, self.worst)
        numbers = {entry.number for entry in chosen}
        rest = [entry for entry in tried if entry.number not in numbers]
        chosen += rest[len(numbers) - MAX_TRIALS :]
        return sorted(chosen, key=lambda entry: entry.number)

    def _likely(self, beliefs: Beliefs, rng: np.random.Generator) -> Genome:
        """A random genome that is likely to keep the budgets; the likeliest of many otherwise."""
        best, chance = self.draw(rng), 0.0
        if not beliefs.margins:
            return best
        for _ in range(MAX_RANDOM):
            genome = self.draw(rng)
            keeps = float(beliefs.keeps_budgets(features(self.space, genome)[None])[0])
            if keeps > chance:
                best, chance = genome, keeps
            if chance >= LIKELY:
                break
        return best

    # --- what to try --------------------------------------------------------------------------

    def _search(
        self,
        beliefs: Beliefs,
        tried: Sequence[Tried],
        known: set[Hashable],
        pending: Sequence[Pending],
        rng: np.random.Generator,
    ) -> Candidate:
        """The most promising of several generations of candidates."""
        config = self.config
        assert isinstance(config, Model.Config)
        best = history.best(tried, self.objectives, NUM_PARENTS, self.worst)
        best = [entry for entry in best if entry.is_parent] or best
        parents = [Candidate(entry.genome, (entry.number,)) for entry in best]
        gains = Gains(self, beliefs, tried, pending, rng)
        found: list[Candidate] = []
        seen = set(known)
        share = RANDOM_SHARE
        for _ in range(ROUNDS):
            new = self._generation(parents, config.candidates // ROUNDS, share, seen, rng)
            if new:
                x_CF = np.stack([features(self.space, each.genome) for each in new])
                found += [e._replace(gain=float(g)) for e, g in zip(new, gains(x_CF), strict=True)]
                found.sort(key=lambda each: -each.gain)
            parents, share = found[:NUM_PROMISING] or parents, 0.0
        return found[0] if found else Candidate(self.draw(rng), ())

    def _generation(
        self,
        parents: Sequence[Candidate],
        count: int,
        random_share: float,
        seen: set[Hashable],
        rng: np.random.Generator,
    ) -> list[Candidate]:
        """New candidates that may be tried, of specs not among those seen, which grow by them."""
        found: list[Candidate] = []
        for _ in range(3 * count):
            each = (
                Candidate(self.draw(rng), ())
                if rng.random() < random_share
                else self._child(parents, rng)
            )
            identity = self.identity(each.genome)
            if identity in seen:
                continue
            seen.add(identity)
            # What may not be tried would win by its promise, and chance would then take its place.
            if self.allows is None or self.allows(each.genome):
                found.append(each)
            if len(found) == count:
                break
        return found

    def _child(self, parents: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
        """One to a few changes of a parent, or of a cross of two."""
        first = parents[int(rng.integers(len(parents)))]
        genome, numbers = first.genome, first.parents
        if rng.random() < CROSSOVER:
            second = parents[int(rng.integers(len(parents)))]
            if second is not first:
                genome = crossover(self.space, genome, second.genome, rng)
                numbers = tuple(dict.fromkeys((*numbers, *second.parents)))
        for _ in range(int(rng.geometric(0.6))):
            genome = mutate(self.space, genome, rng)
        return Candidate(genome, numbers)

    def _replicate(
        self,
        members: Sequence[Tried],
        beliefs: Beliefs,
        pending: Sequence[Pending],
        rng: np.random.Generator,
    ) -> Proposal | None:
        """Another measurement of the front member about which most is at stake and unknown."""
        busy = {entry.replicates for entry in pending}
        columns = [
            beliefs.objectives[o.name].known_draws(members, NUM_DRAWS, rng) for o in self.objectives
        ]
        points_KNM = self.minimised(columns)
        worst_M = self.reference_point(points_KNM.reshape(-1, len(self.objectives)))
        on_front_KN = np.stack([front.nondominated(p) & (p < worst_M).all(1) for p in points_KNM])
        spread_M = points_KNM.std((0, 1)) + 1e-12
        unknown_N = (points_KNM.std(0) / spread_M).max(1)
        stake_N = on_front_KN.mean(0) * unknown_N
        stake_N[[entry.number in busy for entry in members]] = 0.0
        chosen = members[int(np.argmax(stake_N))]
        if not stake_N.max() > 0:
            return None
        return Proposal(chosen.genome, "replicate", (chosen.number,), chosen.number)

    def minimised(self, columns: Sequence[Floats]) -> Floats:
        """Objectives side by side, less of each being better, (..., M)."""
        pairs = zip(columns, self.objectives, strict=True)
        return np.stack([history.signed(1.0, o) * column for column, o in pairs], -1)

    def reference_point(self, points_NM: Floats) -> Floats:
        """The reference point, or the worst of the points where nobody says."""
        if self.worst is None:
            return np.asarray(points_NM.max(0))
        return np.array([history.signed(self.worst[o.name], o) for o in self.objectives])


class Gains:
    """What genomes are expected to add to the front that is believed in.

    All genomes are judged by the same draws, so that luck does not order them.
    """

    def __init__(
        self,
        model: Model,
        beliefs: Beliefs,
        tried: Sequence[Tried],
        pending: Sequence[Pending],
        rng: np.random.Generator,
    ) -> None:
        self._model, self._beliefs = model, beliefs
        self._believed = [beliefs.objectives[o.name] for o in model.objectives]
        trained = beliefs.trained(tried)
        front_NM = model.minimised([b.mean(trained) for b in self._believed])
        new = [entry.genome for entry in pending if entry.replicates is None]
        if new:
            x_CF = np.stack([features(model.space, genome) for genome in new])
            running_CM = model.minimised([b.surrogate.marginals(x_CF)[0] for b in self._believed])
            front_NM = np.vstack([front_NM, running_CM[beliefs.keeps_budgets(x_CF) > LIKELY]])
        self._worst = model.reference_point(front_NM)
        self._front = front_NM[front.nondominated(front_NM)]
        self._normal = rng.standard_normal((NUM_DRAWS, 1, len(self._believed)))

    def __call__(self, x_CF: Floats) -> Floats:
        """Expected hypervolume of each genome, (C,)."""
        marginals = [believed.surrogate.marginals(x_CF) for believed in self._believed]
        drawn = [mean + sd * self._normal[..., m] for m, (mean, sd) in enumerate(marginals)]
        points_KCM = self._model.minimised(drawn)
        flat = points_KCM.reshape(-1, len(self._believed))
        added = improvements(flat, self._front, self._worst).reshape(NUM_DRAWS, -1)
        return np.asarray(added.mean(0) * self._beliefs.keeps_budgets(x_CF))
