"""Before a study ends: what it would claim is measured and trained once more.

The best of many noisy trials was lucky on average. A trial that the study would call on the front
is therefore replicated, in fresh processes and with fresh seeds, and its place is then that of its
replicates alone: they were not chosen for being good.
"""

from collections.abc import Sequence

from archloop.ranking.comparison import compared
from archloop.search.recipe.recipe import Recipe
from archloop.search.telling import Finished
from archloop.store.reference_run import ReferenceRun


def due(trials: Sequence[Finished], reference_run: ReferenceRun, recipe: Recipe) -> int | None:
    """Number of the trial to replicate next; None if nothing is due.

    A function of the trials that are no replicates, so that replicates do not change what is
    replicated.

    Args:
        trials: that have finished.
        reference_run: what was fixed before trial 0.
        recipe: which says how many replicates each trial has that would be claimed.
    """
    count = recipe.replicates
    originals = [
        trial
        for trial in trials
        if trial.stored.candidate.replicates is None and trial.result.reached
    ]
    if not count or not originals:
        return None
    stacks = [trial.result.reached for trial in originals]
    found = compared(
        reference_run.objectives,
        stacks,
        reference_run.noise,
        reference_run.worst,
        recipe.objectives,
    )
    if "quality" in found.unranked:
        # A study that cannot tell stacks' quality apart claims no places, so nothing needs to be
        # replicated.
        return None
    done = [trial.stored.candidate.replicates for trial in trials]
    for trial, place in zip(originals, found.places, strict=True):
        number = trial.stored.number
        if place.member.status == "front" and done.count(number) < count:
            return number
    return None
