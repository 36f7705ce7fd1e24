"""Rungs: which of the told trials is trained longer next, by `ranking.halving`.

A trial is told when rung 0 has been trained. It goes on when it has a place at the next rung, which
may be at once or much later: with every told trial places are given anew.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from archloop.ranking import halving
from archloop.ranking.estimates import estimates, pools
from archloop.ranking.objectives import as_point
from archloop.ranking.record import Objective, Objectives, Readings
from archloop.ranking.table import table
from archloop.search.telling import Finished

MAX_COMPARED = 256
"""Trials that are compared; of more, the latest."""


class Standings:
    """The told trials at one rung.

    Attributes:
        by_number: what each reached there.
    """

    def __init__(self) -> None:
        self.by_number: dict[int, Objectives] = {}

    def add(self, number: int, objectives: Objectives) -> None:
        """One more trial."""
        self.by_number[number] = objectives


class Climb(NamedTuple):
    """A trial and the rung that it is to be trained to."""

    number: int
    rung: int


def due(
    told: Sequence[Finished],
    busy: Collection[int],
    noise: Sequence[Mapping[str, Readings]],
    worst: Objectives,
    num_rungs: int,
    share: float,
    wanted: Sequence[Objective],
    seed: int,
) -> Climb | None:
    """The trial that has a place at a higher rung and is not trained there yet, if any.

    Highest rungs come first. Replicates neither climb by themselves nor compete with the trial that
    they repeat.

    Args:
        told: finished trials, by number.
        busy: numbers of those that are climbing now.
        noise: further readings that show it.
        worst: the reference point.
        num_rungs: of the recipe.
        share: of the trials at a rung that go on; at least one does.
        wanted: the study's objectives.
        seed: of the study.
    """
    for rung in reversed(range(num_rungs - 1)):
        trials = [
            trial
            for trial in told
            if trial.stored.candidate.replicates is None and len(trial.result.reached) > rung
        ][-MAX_COMPARED:]
        gone = {i for i, trial in enumerate(trials) if _has_gone(trial, rung, busy)}
        if len(trials) < halving.MIN_FINISHED or len(gone) == len(trials):
            continue
        stacks = [trial.result.by_rung[rung].values for trial in trials]
        known = table(estimates(stacks, pools([*noise, *stacks])), wanted)
        draw = int(np.random.SeedSequence([seed, rung, len(trials)]).generate_state(1)[0])
        best = halving.promotable(known, gone, as_point(worst, wanted), share, seed=draw)
        if best:
            return Climb(trials[best[0]].stored.number, rung + 1)
    return None


def _has_gone(trial: Finished, rung: int, busy: Collection[int]) -> bool:
    """It was trained longer than this rung, is being so now, or was tried to be and crashed."""
    crashed = trial.result.error is not None
    return len(trial.result.by_rung) > rung + 1 or crashed or trial.stored.number in busy
