"""Which trials' weights a study keeps under ``keep: front``, while the front moves."""

from collections.abc import Sequence

import numpy as np

from archloop.ranking.front import nondominated
from archloop.ranking.objectives import as_point
from archloop.ranking.record import Objective
from archloop.search.rungs import Standings


def on_a_front(at_rung: Sequence[Standings], wanted: Sequence[Objective]) -> set[int]:
    """Numbers of the trials that no other dominates at some rung that they reached.

    By point values: more generous than the reported front for those that noise favoured, and quick
    beside a trial.

    Args:
        at_rung: the told trials at each rung.
        wanted: the study's objectives.
    """
    found = set()
    for standings in at_rung:
        if standings.by_number:
            numbers = sorted(standings.by_number)
            points = np.array([as_point(standings.by_number[n], wanted) for n in numbers])
            found |= {numbers[index] for index in np.flatnonzero(nondominated(points))}
    return found
