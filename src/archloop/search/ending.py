"""When a study has enough trials: their number, its time, or a front that no longer moves."""

from collections.abc import Sequence

from archloop.ranking.comparison import compared
from archloop.search.recipe.recipe import Recipe
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
            originals, reference_run, recipe
        ):
            return f"none of the last {recipe.until_still} trials is on the front"
    return None


def _front(trials: Sequence[Finished], reference_run: ReferenceRun, recipe: Recipe) -> set[int]:
    """Numbers of the trials on the front of the shrunk means."""
    reached = [trial for trial in trials if trial.result.reached]
    if not reached:
        return set()
    stacks = [trial.result.reached for trial in reached]
    found = compared(
        reference_run.objectives,
        stacks,
        reference_run.noise,
        reference_run.worst,
        recipe.objectives,
        num_draws=NUM_DRAWS,
    )
    return {reached[index].stored.number for index in found.reported if index >= 0}
