"""Before a study ends: what it would claim is measured and trained once more.

The best of many noisy trials was lucky on average. A trial that the study would call on the front
is therefore replicated, in fresh processes and with fresh seeds, and its place is then that of its
replicates alone: they were not chosen for being good.
"""

from collections import Counter
from collections.abc import Sequence

from archloop.ranking import membership
from archloop.ranking.comparison import Comparison, compared, with_replicates
from archloop.ranking.record import QUALITY, Objective
from archloop.search.recipe.recipe import Recipe
from archloop.search.telling import Finished
from archloop.store.reference_run import ReferenceRun


def due(trials: Sequence[Finished], reference_run: ReferenceRun, recipe: Recipe) -> int | None:
    """Number of the trial to replicate next; None if nothing is due.

    Trials are judged as the study's verdict judges them, by the replicates that there are: where
    one falls behind by its replicates another may come to the front, which is then replicated too,
    and where replicates show more noise less is claimed, and nothing is replicated for it.

    Args:
        trials: that have finished, and replicates that have begun.
        reference_run: what was fixed before trial 0.
        recipe: which says how many replicates each trial has that would be claimed.
    """
    count = recipe.replicates
    # A study of devices claims no places, so nothing needs to be replicated.
    has_quality = any(each.name == QUALITY for each in recipe.objectives)
    if not count or not has_quality or not any(_is_compared(trial) for trial in trials):
        return None
    begun = Counter(trial.stored.candidate.replicates for trial in trials)
    latest = max(trials, key=lambda trial: trial.stored.number).stored.candidate.replicates
    if latest is not None and begun[latest] < count:
        # Whether a trial gets its second replicate must not hang on how good its first one is:
        # those that were begun well would be left, which is luck once more.
        return latest
    originals, found = standing(trials, reference_run, recipe.objectives)
    if QUALITY in found.unranked:
        # Nor does a study claim any that cannot tell stacks' quality apart.
        return None
    for trial, place in zip(originals, found.places, strict=True):
        number = trial.stored.number
        if place.member.status == "front" and begun[number] < count:
            return number
    return None


def standing(
    trials: Sequence[Finished],
    reference_run: ReferenceRun,
    objectives: Sequence[Objective],
    num_draws: int = membership.NUM_DRAWS,
) -> tuple[list[Finished], Comparison]:
    """The trials that are compared, and how they compare, each by its replicates if it has any.

    Args:
        trials: that have finished or begun, replicates among them.
        reference_run: what was fixed before trial 0.
        objectives: that are compared.
        num_draws: of the posterior.
    """
    originals = [trial for trial in trials if _is_compared(trial)]
    again: dict[int | None, list[Finished]] = {}
    for trial in trials:
        if trial.result.reached:
            again.setdefault(trial.stored.candidate.replicates, []).append(trial)
    runs = [
        [each.result.reached for each in (trial, *again.get(trial.stored.number, ()))]
        for trial in originals
    ]
    stacks, noise = with_replicates(runs)
    found = compared(
        reference_run.objectives,
        stacks,
        [*reference_run.noise, *noise],
        reference_run.worst,
        objectives,
        num_draws=num_draws,
    )
    return originals, found


def _is_compared(trial: Finished) -> bool:
    """Whether a trial is a stack of its own of which something was read."""
    return trial.stored.candidate.replicates is None and bool(trial.result.reached)
