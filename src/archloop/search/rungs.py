"""Rungs: which trials are trained longer, by `ranking.halving`, from what was told alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from archloop.ranking import halving
from archloop.ranking.estimates import estimates, pools
from archloop.ranking.objectives import OBJECTIVES, as_point
from archloop.ranking.record import Objectives, Readings
from archloop.ranking.table import table

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

    @property
    def told(self) -> list[Objectives]:
        """By trial number, whatever the order in which they ended."""
        return [self.by_number[number] for number in sorted(self.by_number)]


def promoted(
    trial: Objectives,
    others: Standings,
    noise: Sequence[Mapping[str, Readings]],
    worst: Objectives,
    share: float,
    seed: Sequence[int],
) -> bool:
    """Whether a trial goes to the next rung.

    Args:
        trial: its objectives at this rung.
        others: of the trials that were told at this rung.
        noise: further readings that show it.
        worst: the reference point.
        share: of the trials at a rung that go on; at least one does.
        seed: of the noise that is drawn.
    """
    everyone = [trial.values, *(other.values for other in others.told[-MAX_COMPARED:])]
    known = table(estimates(everyone, pools([*noise, *everyone])), OBJECTIVES)
    number = int(np.random.SeedSequence(list(seed)).generate_state(1)[0])
    return 0 in halving.promotable(known, (), as_point(worst), share, seed=number)
