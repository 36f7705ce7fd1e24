"""What is known while a study runs: the likely front, budgets that bite, how long phases take."""

from collections import Counter
from collections.abc import Sequence

from archloop.ranking.comparison import Place
from archloop.ranking.objectives import readable
from archloop.search import replication
from archloop.search.recipe.recipe import Recipe
from archloop.search.telling import Finished
from archloop.store.progress import Likely, Phase
from archloop.store.record import Candidate
from archloop.store.reference_run import ReferenceRun

NUM_DRAWS = 200
"""Behind a probability that is looked at and gone."""


def standings(
    trials: Sequence[Finished], reference_run: ReferenceRun, recipe: Recipe
) -> tuple[Likely, ...]:
    """Who may be on the front, the likeliest first; the reference run among them."""
    originals, found = replication.standing(
        trials,
        reference_run,
        readable(recipe.objectives, reference_run.scale),
        NUM_DRAWS,
    )
    everyone = [_likely(-1, reference_run.candidate, found.reference)]
    everyone += [
        _likely(each.stored.number, each.stored.candidate, place)
        for each, place in zip(originals, found.places, strict=True)
    ]
    return tuple(sorted(everyone, key=lambda each: (-each.probability, each.number)))


def _likely(number: int, candidate: Candidate, place: Place) -> Likely:
    values = {name: estimate.mean for name, estimate in place.estimates.items()}
    return Likely(number, tuple(candidate.spec.layout), values, place.member.probability)


def bites(trials: Sequence[Finished]) -> tuple[tuple[str, int], ...]:
    """Budgets, with the number of trials that broke each; most first."""
    counts = Counter(
        f"{broken.metric} at {broken.context} on {broken.target}"
        for each in trials
        for broken in each.result.broken
    )
    return tuple(counts.most_common())


def typical_s(trials: Sequence[Finished], phase: Phase) -> float | None:
    """Mean wall time of a phase in the trials that had it."""
    # Trained once: a later rung takes longer. A training is scored before its trial goes on.
    results = [each.result for each in trials if phase != "train" or len(each.result.by_rung) == 1]
    parts = ("train", "evaluate") if phase == "train" else (phase,)
    times = [sum(result.seconds.get(part, 0.0) for part in parts) for result in results]
    taken = [seconds for seconds in times if seconds]
    return sum(taken) / len(taken) if taken else None


def why(candidate: Candidate) -> str:
    """Where a stack comes from: ``mutation of 3``, ``crossover of 3 and 5``, ``repeats 4``."""
    if candidate.replicates is not None:
        return f"repeats {candidate.replicates}"
    if not candidate.parents:
        return candidate.origin
    return f"{candidate.origin} of {' and '.join(map(str, candidate.parents))}"
