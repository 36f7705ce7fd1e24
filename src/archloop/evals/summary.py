"""A suite's scores in one number, with an error that knows which of them vary together.

    aggregate = mean over categories of the mean over their evaluations of
                (score - chance) / (perfect - chance)

1. Each example moves its evaluation's normalised score by its *influence*; over examples, the
   influences of a score add up to nothing and their squares to its variance.
2. Evaluations that grade the same examples vary together. Their influences are added example by
   example before they are squared, so the covariance of all pairs is in the error.
3. Scores of several trainings vary with the seed, all scores of a training together. The error over
   trainings is therefore that of the trainings' aggregates, each one number.

Shape suffixes: N examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.evals.base import Grades, Score

Influences = Mapping[str, tuple[str, NDArray[np.float64]]]
"""By evaluation: the name of its examples, and the influence of each of them, (N,)."""


class Summary(NamedTuple):
    """What a suite's scores come to.

    Attributes:
        categories: mean normalised score of each, and its standard error.
        mean: over categories.
        standard_error: of the mean, over examples.
    """

    categories: dict[str, tuple[float, float]]
    mean: float
    standard_error: float


def influence(score: Score, grades: Grades) -> NDArray[np.float64]:
    """How far each example moves the normalised score, (N,); its squares add up to the variance.

    A score that no example moves still has an error (`base.mean`), which is spread over all.
    """
    weights_N = np.ones(len(grades.values_N)) if grades.weights_N is None else grades.weights_N
    num = len(weights_N)
    moved_N = (grades.values_N - score.value * weights_N) / (num * weights_N.mean())
    moved_N *= math.sqrt(num / (num - 1)) / (score.perfect - score.chance)
    found = float(np.sqrt((moved_N**2).sum()))
    error = score.standard_error / abs(score.perfect - score.chance)
    if found == 0:
        return np.full(num, error / math.sqrt(num))
    out_N: NDArray[np.float64] = moved_N * (error / found)
    return out_N


def summarise(scores: Mapping[str, Score], influences: Influences | None = None) -> Summary:
    """Category scores and their mean.

    Args:
        scores: by evaluation.
        influences: of the examples of each; evaluations without any share none.

    Raises:
        ValueError: there is no score, or evaluations that share their examples differ in number.
    """
    if not scores:
        raise ValueError("no scores to sum up")
    members: dict[str, list[str]] = {}
    for name, score in scores.items():
        members.setdefault(score.category, []).append(name)
    categories: dict[str, tuple[float, float]] = {}
    shares: dict[str, float] = {}
    for category, names in sorted(members.items()):
        value = math.fsum(scores[name].normalized for name in names) / len(names)
        weights = {name: 1 / len(names) for name in names}
        categories[category] = (value, _error(scores, influences or {}, weights))
        shares |= {name: weight / len(members) for name, weight in weights.items()}
    mean = math.fsum(value for value, _ in categories.values()) / len(categories)
    return Summary(categories, mean, _error(scores, influences or {}, shares))


def over_trainings(trainings: Sequence[Mapping[str, Score]]) -> Summary:
    """The same over trainings of one stack that differ in their seed.

    The error holds what seeds and examples bring together, since every training is scored by itself
    and a training's scores are first made one number.

    Raises:
        ValueError: fewer than two trainings, or they were scored by different evaluations.
    """
    if len(trainings) < 2:
        raise ValueError("an error over trainings needs two of them; train with another seed")
    if len({frozenset(each) for each in trainings}) > 1:
        raise ValueError("the trainings were scored by different evaluations; score them alike")
    found = [summarise(each) for each in trainings]
    categories = {
        category: _mean_and_error([each.categories[category][0] for each in found])
        for category in found[0].categories
    }
    return Summary(categories, *_mean_and_error([each.mean for each in found]))


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return math.fsum(values) / len(values), error


def _error(
    scores: Mapping[str, Score], influences: Influences, weights: Mapping[str, float]
) -> float:
    """Standard error of a weighted sum of normalised scores."""
    variance = 0.0
    together: dict[str, NDArray[np.float64]] = {}
    for name, weight in weights.items():
        if name not in influences:
            score = scores[name]
            variance += (weight * score.standard_error / (score.perfect - score.chance)) ** 2
            continue
        examples, moved_N = influences[name]
        known_N = together.get(examples, np.zeros(len(moved_N)))
        if len(known_N) != len(moved_N):
            raise ValueError(
                f"{name} has {len(moved_N)} examples and others of {examples!r} {len(known_N)}"
            )
        together[examples] = known_N + weight * moved_N
    variance += sum(float((moved_N**2).sum()) for moved_N in together.values())
    return math.sqrt(variance)
