"""What was told, as strategies look at it: replicates merged, and numbers of which less is better.

Shape suffixes: N trials, M objectives.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.ranking import front
from archloop.ranking.estimate import Estimate
from archloop.ranking.record import Objective
from archloop.search.base import Told
from archloop.space.genome import Genome

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Tried(NamedTuple):
    """A spec and everything that its trials measured.

    Attributes:
        number: of its first trial.
        genome: of it.
        figures, margins: as of `Told`, averaged over its trials.
        is_parent: it was measured and trained, and may have children.
        excess: by how much budgets are exceeded, relative to their limits, summed.
        num_trials: that measured it.
    """

    number: int
    genome: Genome
    figures: Mapping[str, Estimate]
    margins: Mapping[str, Estimate]
    is_parent: bool
    excess: float
    num_trials: int


def merged(told: Sequence[Told]) -> list[Tried]:
    """One entry a spec, by ascending number of its first trial."""
    groups: dict[int, list[Told]] = {}
    for entry in told:
        first = entry.number if entry.replicates is None else entry.replicates
        groups.setdefault(first, []).append(entry)
    return [_tried(number, groups[number]) for number in sorted(groups)]


def points(tried: Sequence[Tried], objectives: Sequence[Objective]) -> Floats:
    """Objectives, (N, M), less of everything being better; NaN where none was measured."""
    rows = np.full((len(tried), len(objectives)), np.nan)
    for row, entry in zip(rows, tried, strict=True):
        for column, objective in enumerate(objectives):
            figure = entry.figures.get(objective.name)
            if figure is not None:
                row[column] = signed(figure.mean, objective)
    return rows


def signed(value: float, objective: Objective) -> float:
    """A value so that less is better."""
    return -value if objective.direction == "maximize" else value


def constrained_order(points_NM: Floats, excess_N: Floats, count: int) -> Ints:
    """Indices of the best `count`, best first (Deb et al. 2002).

    Feasible points come first, by non-domination rank and then crowding distance; the others
    follow by their excess. Ties keep the given order.

    Args:
        points_NM: minimised; of infeasible ones anything.
        excess_N: of the constraints; 0 where they are kept.
        count: at most so many.
    """
    feasible, broken = np.flatnonzero(excess_N <= 0), np.flatnonzero(excess_N > 0)
    kept = feasible[front.selected(points_NM[feasible], count)]
    nearest = broken[np.argsort(excess_N[broken], kind="stable")]
    return np.concatenate([kept, nearest])[:count]


def best(
    tried: Sequence[Tried],
    objectives: Sequence[Objective],
    count: int,
    worst: Mapping[str, float] | None = None,
) -> list[Tried]:
    """The best trials, best first: those inside the reference point, other feasible ones, rejected.

    Args:
        tried: to choose from.
        objectives: what is optimised.
        count: at most so many.
        worst: the reference point; None leaves it out.
    """
    usable = [entry for entry in tried if entry.is_parent or entry.excess > 0]
    points_NM = points(usable, objectives)
    excess_N = np.array([entry.excess for entry in usable])
    known = (excess_N > 0) | np.isfinite(points_NM).all(1)
    index = np.flatnonzero(known)
    inside = index
    if worst is not None:
        limit = np.array([signed(worst[objective.name], objective) for objective in objectives])
        with np.errstate(invalid="ignore"):
            inside = index[(excess_N[index] <= 0) & (points_NM[index] < limit).all(1)]
    chosen: list[int] = []
    for group in (inside, np.setdiff1d(index, inside)):
        order = constrained_order(points_NM[group], excess_N[group], count - len(chosen))
        chosen += [int(i) for i in group[order]]
    return [usable[i] for i in chosen]


def _tried(number: int, group: Sequence[Told]) -> Tried:
    complete = [entry for entry in group if entry.state == "complete"]
    rejected = [entry for entry in group if entry.state == "rejected"]
    margins = _averaged([entry.margins for entry in group])
    excess = 0.0
    if rejected and not complete:
        excess = sum(max(0.0, math.expm1(margin.mean)) for margin in margins.values())
        # The gate rejected the trial although no average here is above its limit: the gate knows
        # intervals too. A tiny excess says that the trial is infeasible.
        excess = max(excess, 1e-9)
    return Tried(
        number=number,
        genome=group[0].genome,
        figures=_averaged([entry.figures for entry in group if entry.state != "diverged"]),
        margins=margins,
        is_parent=bool(complete),
        excess=excess if math.isfinite(excess) else math.inf,
        num_trials=len(group),
    )


def _averaged(given: Iterable[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    """Each figure's mean over the trials that measured it, weighted by what is known of each."""
    found: dict[str, list[Estimate]] = {}
    for figures in given:
        for name, estimate in figures.items():
            found.setdefault(name, []).append(estimate)
    return {name: _mean(estimates) for name, estimates in found.items()}


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    if len(estimates) == 1:
        return estimates[0]
    if any(estimate.se <= 0 for estimate in estimates):
        count = len(estimates)
        return Estimate(mean=math.fsum(e.mean for e in estimates) / count, n=count)
    weights = [estimate.se**-2 for estimate in estimates]
    total = math.fsum(weights)
    return Estimate(
        mean=math.fsum(w * e.mean for w, e in zip(weights, estimates, strict=True)) / total,
        se=total**-0.5,
        n=sum(estimate.n for estimate in estimates),
    )
