"""Rungs: which trials are trained longer.

Asynchronous successive halving (arXiv 1810.05934) with the expected hypervolume contribution in
place of a single score: a trial goes on if its own is in the top share of all that reached its
rung before it. A pure function of what was told, so a resumed study decides alike.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from archloop.ranking import front
from archloop.ranking.objectives import as_point, noise
from archloop.ranking.record import Objectives

MAX_COMPARED = 64
"""Trials compared by expected contribution; of more, those of the best non-domination ranks."""
NUM_SAMPLES = 64


class Standings:
    """The told trials at one rung: points (less is better) and standard errors, (N, 3) each."""

    def __init__(self) -> None:
        self._rows = np.empty((64, 6))
        self._count = 0

    def add(self, objectives: Objectives) -> None:
        """One more trial."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = (*as_point(objectives), *noise(objectives))
        self._count += 1

    @property
    def rows(self) -> NDArray[np.float64]:
        """Points, then standard errors, (N, 6)."""
        return self._rows[: self._count]


def promoted(
    trial: Objectives,
    others: Standings,
    worst: Objectives,
    share: float,
    seed: Sequence[int],
) -> bool:
    """Whether a trial goes to the next rung.

    Args:
        trial: its objectives at this rung.
        others: of the trials with lower numbers at this rung.
        worst: the reference point.
        share: of the trials at a rung that go on; at least one does.
        seed: of the noise that is drawn.
    """
    everyone = np.vstack([[*as_point(trial), *noise(trial)], others.rows])
    places = max(1, math.floor(share * len(everyone)))
    # The trial's own index is 0, so that it wins ties within its rank.
    nearest = np.argsort(front.ranks(everyone[:, :3]), kind="stable")[:MAX_COMPARED]
    if 0 not in nearest:
        return False
    gains = front.expected_contributions(
        everyone[nearest, :3],
        everyone[nearest, 3:],
        as_point(worst),
        seed=int(np.random.SeedSequence(list(seed)).generate_state(1)[0]),
        num_samples=NUM_SAMPLES,
    )
    own = gains[list(nearest).index(0)]
    return bool(own > 0 and (gains > own).sum() < places)
