"""Learning rates, tuned for each mixer on a stack of that mixer alone, at proxy width.

Without this a comparison of families would compare how well one rate happens to suit each. With it
each family has the best of a few rates by one training each, by text alone: trainings of one rate
differ too, so that the rate beside it may be the better one, and a mixed stack may want another.
Where the recipe knows how fast the loss grows beside the best rate, two rates show where it lies.
"""

import math
from collections.abc import Callable

from archloop.proxy.record import Rung, TrainJob
from archloop.search.anchors import alone
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.plan import Plan, Stream, stream_seed
from archloop.search.workshop import Training, Workshop
from archloop.store.folder import StudyFolder
from archloop.store.record import FamilyRate

TEXT = "bits_per_byte"


def tune(
    plan: Plan, workshop: Workshop, folder: StudyFolder, key: str, announce: Callable[[str], None]
) -> tuple[dict[str, FamilyRate], float]:
    """The best learning rate of each mixer of the space, on a stack of that mixer alone.

    Raises:
        StudyError: a training failed, or every rate of a mixer diverged.
    """
    tuning = plan.recipe.tuning
    if tuning is None:
        return {}, 0.0
    wanted = {}
    for mixer in plan.space.mixers:
        spec = alone(plan.space, mixer, plan.vocab_size)
        files = folder.tuning(mixer, f"{key}:{spec.digest}")
        for index, rate in enumerate(tuning.learning_rates):
            seed = stream_seed(plan.recipe.seed, Stream.TUNING)
            job = TrainJob(spec=spec, num_steps=tuning.num_steps, seed=seed, learning_rate=rate)
            wanted[mixer, rate] = Training(job, files, files.rate(index))
    announce(", ".join(plan.space.mixers))
    try:
        trained = workshop.train(list(wanted.values()))
    except CandidateFailed as error:
        raise StudyError(
            f"a training that tunes a learning rate failed, so none can be chosen: {error}"
        ) from error
    stages = dict(zip(wanted, trained, strict=True))
    rates = {}
    for mixer in plan.space.mixers:
        # Keyed by all digits of the rate: two rates that differ in the last are different.
        losses = {repr(r): _loss(stages[mixer, r].value) for r in tuning.learning_rates}
        if all(math.isinf(loss) for loss in losses.values()):
            raise StudyError(
                f"every learning rate diverged for {mixer}; add smaller tuning.learning_rates"
            )
        rates[mixer] = (
            _best(losses) if tuning.curvature is None else lowest(losses, tuning.curvature)
        )
    return rates, math.fsum(stage.seconds for stage in stages.values())


def _best(losses: dict[str, float]) -> FamilyRate:
    """The best of those tried."""
    best, tried = min(losses, key=lambda rate: losses[rate]), list(losses)
    return FamilyRate(value=float(best), losses=losses, at_edge=best in (tried[0], tried[-1]))


def lowest(losses: dict[str, float], curvature: float) -> FamilyRate:
    """Where a parabola of a known curvature lies lowest that fits the losses best.

    With x the logarithm of the rate to base 2, loss - curvature x^2 is a line in x, whose slope is
    -2 curvature times the best x. Kept within a factor of two of the rates that did not diverge:
    what lies farther out was not seen.

    Args:
        losses: by rate, not all infinite.
        curvature: bits per byte at a factor of two from the best rate.
    """
    finite = {math.log2(float(rate)): loss for rate, loss in losses.items() if math.isfinite(loss)}
    if len(finite) < 2:
        return _best(losses).model_copy(update={"at_edge": True})
    middle = math.fsum(finite) / len(finite)
    across = math.fsum((x - middle) ** 2 for x in finite)
    slope = math.fsum((x - middle) * (y - curvature * x * x) for x, y in finite.items()) / across
    place = -slope / (2 * curvature)
    kept = min(max(place, min(finite) - 1), max(finite) + 1)
    return FamilyRate(value=2.0**kept, losses=losses, at_edge=kept != place, curvature=curvature)


def _loss(rung: Rung) -> float:
    """What tuning minimises: held-out bits per byte, or without text the distance from perfect."""
    if rung.diverged:
        return math.inf
    if TEXT in rung.scores:
        return rung.scores[TEXT].value
    return 1 - math.fsum(score.normalized for score in rung.scores.values()) / len(rung.scores)
