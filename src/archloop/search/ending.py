"""When a study has enough trials: their number, its time, or a front that no longer moves."""

from collections.abc import Sequence

from archloop.search.recipe.recipe import Recipe
from archloop.search.replication import standing
from archloop.search.telling import Finished
from archloop.store.reference_run import ReferenceRun

NUM_DRAWS = 200
"""Draws behind the shrunk means: enough for a mean, and quick beside a trial."""


def reason(
    recipe: Recipe, trials: Sequence[Finished], reference_run: ReferenceRun, spent_s: float
) -> str | None:
    """Why no further trial is to be proposed before `num_trials` are; None to go on.

    Args:
        recipe: whose `max_hours` and `until_still` end a study early.
        trials: that have finished, in their order.
        reference_run: what was fixed before trial 0.
        spent_s: wall time of all runs of the study so far.
    """
    if recipe.max_hours is not None and spent_s >= 3600 * recipe.max_hours:
        return f"its time of {recipe.max_hours:g} h is spent"
    if recipe.until_still is not None:
        originals = [trial for trial in trials if trial.stored.candidate.replicates is None]
        latest = {trial.stored.number for trial in originals[-recipe.until_still :]}
        if len(originals) > recipe.until_still and not latest & _front(
            trials, reference_run, recipe
        ):
            return f"none of the last {recipe.until_still} trials is on the front"
    return None


def _front(trials: Sequence[Finished], reference_run: ReferenceRun, recipe: Recipe) -> set[int]:
    """Trials on the front of the shrunk means, what the strategy repeated of them counted in."""
    originals = [trial for trial in trials if trial.stored.candidate.replicates is None]
    last = max(trial.stored.number for trial in originals)
    # Later replicates are those that a study makes once it has ended. By them it must not go on
    # when it is stopped meanwhile and run again.
    known = [trial for trial in trials if trial.stored.number <= last]
    compared, found = standing(known, reference_run, recipe.objectives, NUM_DRAWS)
    return {compared[index].stored.number for index in found.reported if index >= 0}
