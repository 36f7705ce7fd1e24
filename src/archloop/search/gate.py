"""The gate: a spec is measured before anything is trained, and goes on only within the budgets.

A budget is broken when the interval's lower bound exceeds it. One that the interval straddles is
measured once more; what still straddles then is flagged and let through. At most two looks.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from archloop.profiling.record import Profile
from archloop.ranking import objectives
from archloop.ranking.objectives import Budget
from archloop.ranking.record import BrokenBudget

Measure = Callable[[int], Mapping[str, Profile]]
"""Profiles by target, of look 1 or 2."""


class Verdict(NamedTuple):
    """What the gate found.

    Attributes:
        profiles: of the last look.
        broken: budgets exceeded beyond doubt: the trial is rejected.
        straddles: budgets that the interval still contains.
        excess: by how much budgets are exceeded, relative to their limits; 0 if none is broken.
    """

    profiles: Mapping[str, Profile]
    broken: tuple[BrokenBudget, ...]
    straddles: tuple[str, ...]
    excess: float


def judge(measure: Measure, budgets: tuple[Budget, ...]) -> Verdict:
    """Measure once, or twice when in doubt, and compare with the budgets."""
    profiles = measure(1)
    broken = objectives.broken(profiles, budgets)
    straddles = objectives.straddles(profiles, budgets)
    if straddles and not broken:
        profiles = measure(2)
        broken = objectives.broken(profiles, budgets)
        straddles = objectives.straddles(profiles, budgets)
    return Verdict(profiles, broken, straddles, objectives.excess(broken))
