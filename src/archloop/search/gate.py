"""The gate: a spec is measured before anything is trained, and goes on only within the budgets.

    1. Look: measure in fresh processes.
    2. Compare each limited figure with its limit, with the noise that all trials showed of it.
    3. Stop if a budget is broken, or all are kept, beyond the look's boundary; else look again.
    4. After the last look the estimates decide.

So a stack is judged by the best that is known of it, also where that is not beyond doubt, and noise
lets nobody through: `docs/methodology.md` has how often either error happens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from archloop.profiling.record import Profile
from archloop.ranking import budgets as limits
from archloop.ranking.budgets import Budget
from archloop.ranking.estimates import pools
from archloop.ranking.record import BrokenBudget, Readings

Measure = Callable[[int], Mapping[str, Profile]]
"""Profiles by target, of look 1, 2, ..."""


class Verdict(NamedTuple):
    """What the gate found.

    Attributes:
        profiles: of the last look.
        readings: of each limited figure, by its name.
        broken: budgets that the estimate exceeds: the trial is rejected.
        straddles: budgets that the interval still contains.
        excess: by how much budgets are exceeded, relative to their limits; 0 if none is broken.
    """

    profiles: Mapping[str, Profile]
    readings: dict[str, Readings]
    broken: tuple[BrokenBudget, ...]
    straddles: tuple[str, ...]
    excess: float


def judge(
    measure: Measure,
    budgets: Sequence[Budget],
    earlier: Sequence[Mapping[str, Readings]],
    num_looks: int,
    first_look: int = 1,
) -> Verdict:
    """Measure until the budgets are decided.

    Args:
        measure: one more look.
        budgets: of the study.
        earlier: readings of the limited figures by name, of each stack measured before: their
            spread is the noise of this stack's too.
        num_looks: at most.
        first_look: the last one taken already. An earlier one was unsure when it was judged, and
            what has been measured of other stacks since does not change that.
    """
    for look in range(first_look, num_looks + 1):
        profiles = measure(look)
        figures = limits.limited(profiles, budgets)
        own = {figure.name: figure.logs for figure in figures}
        found = limits.judged(figures, pools([*earlier, own]), look, num_looks)
        if found.decision != "unsure":
            break
    excess = limits.excess(found.broken)
    return Verdict(profiles, own, found.broken, found.straddles, excess)


def breaks(
    profiles: Mapping[str, Profile], budgets: Sequence[Budget], look: int, num_looks: int
) -> bool:
    """Whether a budget is broken beyond the look's boundary by the noise of these profiles alone.

    Whoever measures asks it after each target: nothing that other targets say makes up for a broken
    budget. `judge`, which knows the noise of other stacks too, may still ask for another look; that
    begins with the same targets.

    Args:
        profiles: by target, as far as was measured.
        budgets: of the study.
        look: 1 for the first.
        num_looks: at most.
    """
    figures = limits.limited(profiles, budgets)
    own = {figure.name: figure.logs for figure in figures}
    return limits.judged(figures, pools([own]), look, num_looks).decision == "broken"
