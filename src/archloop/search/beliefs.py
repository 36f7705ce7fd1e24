"""What is believed of genomes: a Gaussian process for each objective and each budget.

Costs of blocks add up, so ratios to the reference and to a limit are modelled as they are and not
as logarithms, in which a sum is no sum. A rejected trial was measured too and says what breaks a
budget; a figure that fewer than two trials have is not believed yet.

Shape suffixes: N trials, C genomes, F features, K draws, M budgets' figures, Q common parts.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from archloop.ranking.estimate import Estimate
from archloop.search.history import Tried
from archloop.search.surrogate import Data, Surrogate, fitted
from archloop.space.genome import Genome

Floats = NDArray[np.float64]
MIN_READ = 2
"""Trials without which nothing is believed of a figure."""
REFIT = 1 / 4
"""Hyper-parameters are fitted again when there are so many more trials, as a share of them."""
_LEAST_NOISE = 2.0**-20
"""Of a trial whose figures are exact, over the usual noise."""
MOST_TOGETHER = 0.9
"""Correlation of budgets' figures that is believed at most: targets are never quite one."""
_COMMON_Q = special.ndtri((np.arange(128) + 0.5) / 128)
"""Equally likely values of what budgets' figures have in common, in standard deviations."""
MOST_KEPT = 256
"""Fits that are remembered, the latest: one to fewer trials, or to noise that was known otherwise,
is hardly asked for again."""


class Believed(NamedTuple):
    """The surrogate of a figure.

    Attributes:
        places: of trials in its data, by their numbers.
    """

    surrogate: Surrogate
    places: dict[int, int]

    def mean(self, trials: Sequence[Tried]) -> Floats:
        """Posterior mean of trials' true values, (N,)."""
        return self.surrogate.known(self._index(trials))

    def known_draws(self, trials: Sequence[Tried], count: int, rng: np.random.Generator) -> Floats:
        """Joint draws of trials' true values, (K, N)."""
        return self.surrogate.known_draws(self._index(trials), count, rng)

    def _index(self, trials: Sequence[Tried]) -> NDArray[np.int64]:
        return np.array([self.places[entry.number] for entry in trials], np.int64)


class Beliefs(NamedTuple):
    """Surrogates by name: of objectives, and of what is measured of each budget over its limit.

    Attributes:
        together: mean correlation of budgets' figures over the trials, 0 to `MOST_TOGETHER`.
    """

    objectives: dict[str, Believed]
    margins: dict[str, Believed]
    together: float = 0.0

    def trained(self, tried: Sequence[Tried]) -> list[Tried]:
        """Trials that may be parents and of which every objective was read."""
        return [
            entry
            for entry in tried
            if entry.is_parent and all(entry.number in b.places for b in self.objectives.values())
        ]

    def keeps_budgets(self, x_CF: Floats) -> Floats:
        """Probability that each genome keeps every budget, (C,).

        Budgets' figures go up and down together: the steps of ten targets are not ten risks of
        their own, whose product would say that hardly any stack keeps all. So what is not known
        of them has a common part of the size that their correlation over trials says, as if one
        process were believed of all of them (Bonilla et al. 2008, multi-task Gaussian processes).
        """
        if not self.margins:
            return np.ones(len(x_CF))
        common_Q, own = math.sqrt(self.together) * _COMMON_Q, math.sqrt(1 - self.together)
        found_QC = np.ones((len(common_Q), len(x_CF)))
        for believed in self.margins.values():
            mean_C, sd_C = believed.surrogate.marginals(x_CF)
            room_C = (1.0 - mean_C) / np.maximum(sd_C, 1e-12)
            found_QC *= special.ndtr((room_C - common_Q[:, None]) / own)
        return np.asarray(found_QC.mean(0))


class Believer:
    """Fits beliefs; what it remembers are functions of trials alone.

    Args:
        describe: the features of a genome.
    """

    def __init__(self, describe: Callable[[Genome], Floats]) -> None:
        self._describe = describe
        self._kernels: dict[Hashable, Any] = {}

    def __call__(self, tried: Sequence[Tried], objectives: Sequence[str]) -> Beliefs:
        """What to believe after these trials, of as many objectives and budgets as were read."""
        figures = {name: [(t, t.figures.get(name)) for t in tried] for name in objectives}
        limits = sorted({name for entry in tried for name in entry.margins})
        margins = {name: [(t, _ratio(t.margins, name)) for t in tried] for name in limits}
        return Beliefs(self._fitted(figures), self._fitted(margins), _together(tried, limits))

    def _fitted(
        self, read: Mapping[str, Sequence[tuple[Tried, Estimate | None]]]
    ) -> dict[str, Believed]:
        found = {}
        for name, pairs in read.items():
            known = [(entry, e) for entry, e in pairs if e is not None and math.isfinite(e.mean)]
            if len(known) >= MIN_READ:
                found[name] = self._believed(name, known)
        return found

    def _believed(self, name: str, read: Sequence[tuple[Tried, Estimate]]) -> Believed:
        data = Data(
            np.stack([self._describe(entry.genome) for entry, _ in read]),
            np.array([estimate.mean for _, estimate in read]),
            np.array([estimate.se for _, estimate in read]),
        )
        count = _last_fit(len(read))
        first = _in_steps(Data(*(part[:count] for part in data)))
        key = (name, *(part.tobytes() for part in first))
        if key not in self._kernels:
            if len(self._kernels) >= MOST_KEPT:
                del self._kernels[next(iter(self._kernels))]
            self._kernels[key] = fitted(first)
        places = {entry.number: place for place, (entry, _) in enumerate(read)}
        return Believed(Surrogate(data, self._kernels[key]), places)


def _together(tried: Sequence[Tried], limits: Sequence[str]) -> float:
    """Mean correlation of budgets' figures, over the trials that have all of them."""
    whole = [entry.margins for entry in tried if entry.margins.keys() >= set(limits)]
    read = [[margins[name].mean for name in limits] for margins in whole]
    values_NM = np.array([row for row in read if all(map(math.isfinite, row))])
    if len(values_NM) <= MIN_READ:
        return 0.0
    apart_NM = values_NM - values_NM.mean(0)
    sd_M = apart_NM.std(0)
    unit_NM = apart_NM[:, sd_M > 0] / sd_M[sd_M > 0]
    count = unit_NM.shape[1]
    if count < 2:
        return 0.0
    # The variance of a sum of so many figures of variance 1 is their number and all correlations.
    mean = (float(np.square(unit_NM.sum(1)).mean()) - count) / (count * (count - 1))
    return float(min(max(mean, 0.0), MOST_TOGETHER))


def _ratio(margins: Mapping[str, Estimate], name: str) -> Estimate | None:
    """Value over limit, from the margin, which is the logarithm of it; None if it was not read."""
    margin = margins.get(name)
    if margin is None:
        return None
    ratio = float(np.exp(margin.mean))
    return margin.model_copy(update={"mean": ratio, "se": ratio * margin.se})


def _in_steps(data: Data) -> Data:
    """The data as hyper-parameters see it: noise and values in steps.

    With each trial that is told, the noise of all trials before it is known anew, a percent or so
    off. A fit hardly depends on that, but would be asked for anew by every proposal. The usual
    noise goes in steps of a fifth, a trial's ratio to it in steps of two, and values, which
    averages over replicates move a little too, in steps of a quarter of a standard error.
    """
    usual = float(np.median(data.se_N))
    if usual == 0:
        return data
    ratio_N = np.maximum(data.se_N / usual, _LEAST_NOISE)
    se_N = np.exp2(np.round(4 * np.log2(usual)) / 4 + np.round(np.log2(ratio_N)))
    return Data(data.x_NF, np.round(data.y_N / (se_N / 4)) * (se_N / 4), se_N)


def _last_fit(count: int) -> int:
    """How many of the first trials hyper-parameters rest on: it grows in steps."""
    fit = MIN_READ
    while (later := fit + max(1, int(fit * REFIT))) <= count:
        fit = later
    return fit
