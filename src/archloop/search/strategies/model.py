"""Search by a surrogate: what is measured of each trial says what to expect of its children.

1. The first trials are random, of the sparse prior.
2. Then a Gaussian process is fitted to each objective and to each budget's margin over features of
   genomes (`space.features`), with the noise that is known of each trial. Rejected trials were
   measured too, so they say what breaks a budget.
3. Candidates are children of the front, with a share of random genomes. One joint draw of all
   figures is taken (Thompson sampling): the candidate is proposed that in this draw keeps the
   budgets and adds most to the hypervolume. Workers that ask at once draw differently.
4. Every fifth trial measures and trains a member of the front once more, that with the largest
   product of the probability that it belongs there and of what is not known of it: a front that
   is never measured again is a front of lucky trials.
"""

from collections.abc import Hashable, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from archloop.ranking import front
from archloop.ranking.estimate import Estimate
from archloop.search import history
from archloop.search.base import Pending, Proposal, Remembered, Strategy, StrategyConfig, Told
from archloop.search.history import Tried
from archloop.search.surrogate import Data, Surrogate, fitted
from archloop.space.features import features
from archloop.space.genome import Genome
from archloop.space.space import Space
from archloop.space.variation import crossover, mutate

Floats = NDArray[np.float64]
NUM_PARENTS = 16
"""Best trials whose children are candidates."""
RANDOM_SHARE = 0.15
"""Of the candidates."""
CROSSOVER = 0.3
"""Chance that a candidate has two parents."""
MAX_TRIALS = 300
"""Trials that a posterior rests on: the best and the latest; more would take seconds a proposal."""
REFIT = 1 / 4
"""Hyper-parameters are fitted again when there are so many more trials, as a share of them."""
NUM_DRAWS = 64
"""Draws from which probabilities of belonging to the front are taken."""
MIN_TRAINED = 4
"""Trained trials without which there is no model of quality."""


class Model(Strategy):
    """Gaussian processes, Thompson sampling of hypervolume, replicates of the front."""

    class Config(StrategyConfig):
        """How much is random, compared and replicated.

        Attributes:
            start: random trials before the model is asked, initial genomes among them.
            candidates: compared for each proposal.
            replicate_every: so many trials, the last is a replicate; 0 for none.
        """

        start: Annotated[int, Field(ge=4)] = 12
        candidates: Annotated[int, Field(ge=2, le=4096)] = 64
        replicate_every: Annotated[int, Field(ge=0)] = 5

    def __init__(self, space: Space, *arguments: Any, **options: Any) -> None:
        super().__init__(space, *arguments, **options)
        self._features = Remembered(lambda genome: features(space, genome))
        self._kernels: dict[Hashable, Any] = {}

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
        tried = [entry for entry in history.merged(told) if entry.figures]
        trained = sum(entry.is_parent for entry in tried)
        if number < config.start or trained < MIN_TRAINED:
            return Proposal(self.draw(rng), "random")
        beliefs = self._beliefs(tried)
        every = config.replicate_every
        if every and number % every == every - 1:
            again = self._replicate(tried, beliefs, pending, rng)
            if again is not None:
                return again
        candidates = self._candidates(tried, told, pending, rng)
        x_CF = np.stack([features(self.space, genome) for genome, _ in candidates])
        gains_C = self._gains(beliefs, tried, x_CF, rng)
        genome, parents = candidates[int(np.argmax(gains_C))]
        return Proposal(genome, "model" if parents else "model+random", parents)

    # --- what is believed ---------------------------------------------------------------------

    def _beliefs(self, tried: Sequence[Tried]) -> "Beliefs":
        """A surrogate for each objective and each budget's margin."""
        kept = self._kept(tried)
        margins = sorted({name for entry in tried for name in entry.margins})
        objectives = {o.name: self._surrogate(kept, o.name, "figures") for o in self.objectives}
        return Beliefs(objectives, {n: self._surrogate(kept, n, "margins") for n in margins})

    def _kept(self, tried: Sequence[Tried]) -> list[Tried]:
        if len(tried) <= MAX_TRIALS:
            return list(tried)
        chosen = history.best(tried, self.objectives, MAX_TRIALS // 2, self.worst)
        numbers = {entry.number for entry in chosen}
        rest = [entry for entry in tried if entry.number not in numbers]
        chosen += rest[len(numbers) - MAX_TRIALS :]
        return sorted(chosen, key=lambda entry: entry.number)

    def _surrogate(self, tried: Sequence[Tried], name: str, what: str) -> "Believed":
        read = [
            (entry, getattr(entry, what)[name]) for entry in tried if name in getattr(entry, what)
        ]
        estimates: list[Estimate] = [estimate for _, estimate in read]
        values_N = np.array([estimate.mean for estimate in estimates])
        errors_N = np.array([estimate.se for estimate in estimates])
        # Ratios to the reference multiply; quality and margins add.
        log = what == "figures" and name in self._ratios and bool((values_N > 0).all())
        if log:
            values_N, errors_N = np.log(values_N), errors_N / values_N
        data = Data(np.stack([self._features(e.genome) for e, _ in read]), values_N, errors_N)
        count = _last_fit(len(read))
        first = Data(*(part[:count] for part in data))
        key = (name, what, *(part.tobytes() for part in first))
        if key not in self._kernels:
            self._kernels[key] = fitted(first)
        places = {entry.number: place for place, (entry, _) in enumerate(read)}
        return Believed(Surrogate(data, self._kernels[key]), log, places)

    @property
    def _ratios(self) -> set[str]:
        return {o.name for o in self.objectives if o.direction == "minimize"}

    # --- what to try --------------------------------------------------------------------------

    def _candidates(
        self,
        tried: Sequence[Tried],
        told: Sequence[Told],
        pending: Sequence[Pending],
        rng: np.random.Generator,
    ) -> list[tuple[Genome, tuple[int, ...]]]:
        """New genomes with their parents' numbers."""
        config = self.config
        assert isinstance(config, Model.Config)
        parents = history.best(tried, self.objectives, NUM_PARENTS, self.worst)
        parents = [entry for entry in parents if entry.is_parent] or parents
        known = {self._identity(entry.genome) for entry in told}
        known |= {self._identity(entry.genome) for entry in pending}
        found: dict[Hashable, tuple[Genome, tuple[int, ...]]] = {}
        for _ in range(3 * config.candidates):
            genome, numbers = self._child(parents, rng)
            identity = self.identity(genome)
            if identity not in known:
                found.setdefault(identity, (genome, numbers))
            if len(found) == config.candidates:
                break
        return list(found.values()) or [(self.draw(rng), ())]

    def _child(
        self, parents: Sequence[Tried], rng: np.random.Generator
    ) -> tuple[Genome, tuple[int, ...]]:
        if rng.random() < RANDOM_SHARE:
            return self.draw(rng), ()
        first = parents[int(rng.integers(len(parents)))]
        genome = first.genome
        numbers: tuple[int, ...] = (first.number,)
        if rng.random() < CROSSOVER:
            second = parents[int(rng.integers(len(parents)))]
            if second.number != first.number:
                genome = crossover(self.space, genome, second.genome, rng)
                numbers = (first.number, second.number)
        for _ in range(int(rng.geometric(0.6))):
            genome = mutate(self.space, genome, rng)
        return genome, numbers

    def _gains(
        self, beliefs: "Beliefs", tried: Sequence[Tried], x_CF: Floats, rng: np.random.Generator
    ) -> Floats:
        """What each candidate adds to the hypervolume in one draw of everything, (C,).

        A candidate that breaks a budget in that draw loses by how much it does.
        """
        columns = [beliefs.objectives[o.name].draws(x_CF, 1, rng)[0] for o in self.objectives]
        points_CM = self._minimised(columns)
        over_C = np.zeros(len(x_CF))
        for believed in beliefs.margins.values():
            over_C += np.maximum(believed.draws(x_CF, 1, rng)[0], 0.0)
        trained = beliefs.trained(tried)
        means_NM = self._minimised(
            [beliefs.objectives[o.name].mean(trained) for o in self.objectives]
        )
        best_NM = means_NM[front.nondominated(means_NM)]
        worst_M = self._worst(np.vstack([means_NM, points_CM]))
        before = front.hypervolume(best_NM, worst_M)
        gains = [front.hypervolume(np.vstack([best_NM, p]), worst_M) - before for p in points_CM]
        return np.where(over_C > 0, -over_C, np.array(gains))

    def _replicate(
        self,
        tried: Sequence[Tried],
        beliefs: "Beliefs",
        pending: Sequence[Pending],
        rng: np.random.Generator,
    ) -> Proposal | None:
        """Another measurement of the front member about which most is at stake and unknown."""
        busy = {entry.replicates for entry in pending}
        members = beliefs.trained(tried)
        columns = [
            beliefs.objectives[o.name].known_draws(members, NUM_DRAWS, rng) for o in self.objectives
        ]
        points_KNM = self._minimised(columns)
        worst_M = self._worst(points_KNM.reshape(-1, len(self.objectives)))
        on_front_KN = np.stack([front.nondominated(p) & (p < worst_M).all(1) for p in points_KNM])
        spread_M = points_KNM.std((0, 1)) + 1e-12
        unknown_N = (points_KNM.std(0) / spread_M).max(1)
        stake_N = on_front_KN.mean(0) * unknown_N
        stake_N[[entry.number in busy for entry in members]] = 0.0
        chosen = members[int(np.argmax(stake_N))]
        if not stake_N.max() > 0:
            return None
        return Proposal(chosen.genome, "replicate", (chosen.number,), chosen.number)

    def _minimised(self, columns: Sequence[Floats]) -> Floats:
        """Objectives side by side, less of each being better, (..., M)."""
        pairs = zip(columns, self.objectives, strict=True)
        return np.stack([history.signed(1.0, o) * column for column, o in pairs], -1)

    def _worst(self, points_NM: Floats) -> Floats:
        """The reference point, or the worst of the points where nobody says."""
        if self.worst is None:
            return np.asarray(points_NM.max(0))
        return np.array([history.signed(self.worst[o.name], o) for o in self.objectives])


def _last_fit(count: int) -> int:
    """How many of the first trials hyper-parameters rest on: it grows in steps."""
    fit = min(count, MIN_TRAINED)
    while (later := fit + max(1, int(fit * REFIT))) <= count:
        fit = later
    return fit


class Believed(NamedTuple):
    """The surrogate of a figure, or of its logarithm.

    Attributes:
        places: of trials in its data, by their numbers.
    """

    surrogate: Surrogate
    log: bool
    places: dict[int, int]

    def mean(self, trials: Sequence[Tried]) -> Floats:
        """Posterior mean of trials (median, of a logarithm), (N,)."""
        return self._plain(self.surrogate.known(self._index(trials)))

    def known_draws(self, trials: Sequence[Tried], count: int, rng: np.random.Generator) -> Floats:
        """Joint draws of trials' true values, (count, N)."""
        return self._plain(self.surrogate.known_draws(self._index(trials), count, rng))

    def draws(self, x_CF: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws of candidates, (count, C)."""
        return self._plain(self.surrogate.draws(x_CF, count, rng))

    def _plain(self, values: Floats) -> Floats:
        return np.exp(values) if self.log else values

    def _index(self, trials: Sequence[Tried]) -> NDArray[np.int64]:
        return np.array([self.places[entry.number] for entry in trials])


class Beliefs(NamedTuple):
    """Surrogates of objectives and of margins, by name."""

    objectives: dict[str, Believed]
    margins: dict[str, Believed]

    def trained(self, tried: Sequence[Tried]) -> list[Tried]:
        """Trials that every objective is believed of from its own measurement."""
        return [
            entry
            for entry in tried
            if entry.is_parent and all(entry.number in b.places for b in self.objectives.values())
        ]
