"""The ends of a space: stacks of one mixer alone, trained as often as the reference preset.

Noise of trainings differs between kinds of stack: where a stack learns to recall in one training
and not in the next, its scores vary ten times more than those of a stack that never does. Noise
that is learned of the reference preset alone would be claimed for all others; with the ends it is
at least that of three kinds. Their scores are also what the measures say of a stack that lacks a
skill and of one that has it.
"""

from collections.abc import Callable
from typing import NamedTuple

from archloop.proxy.record import Rung, TrainJob
from archloop.search.evaluator import CandidateFailed
from archloop.search.plan import Plan, training_seed
from archloop.search.tuning import homogeneous
from archloop.search.workshop import Training, Workshop
from archloop.store.folder import StudyFolder
from archloop.store.record import FamilyRate

_SEED_STREAM = 2**35


class End(NamedTuple):
    """A stack of one mixer, trained several times.

    Attributes:
        mixer: of every block.
        rungs: its trainings.
        seconds: of all of them.
    """

    mixer: str
    rungs: tuple[Rung, ...]
    seconds: float


def mixers(plan: Plan) -> tuple[str, ...]:
    """The mixers of the ends: what the recipe says, or the space's first and last."""
    names = plan.space.mixers
    given = plan.recipe.ends
    return tuple(dict.fromkeys((names[0], names[-1]) if given is None else given))


def train(
    plan: Plan,
    workshop: Workshop,
    folder: StudyFolder,
    key: str,
    rates: dict[str, FamilyRate],
    announce: Callable[[str], None],
) -> list[End]:
    """Train each end as often as the reference preset, as far as that is not on disk already.

    Args:
        plan: of the study.
        workshop: that trains.
        folder: of the study.
        key: of the study.
        rates: tuned learning rates; empty if none were tuned.
        announce: told of each training.

    Returns:
        The ends whose trainings ran; one that crashed is left out.
    """
    recipe, found = plan.recipe, []
    for mixer in mixers(plan):
        spec = homogeneous(plan, mixer)
        files = folder.end(mixer, f"{key}:{spec.digest}")
        rate = rates[mixer].value if mixer in rates else None
        announce(f"{mixer} alone, trained with {recipe.reference_seeds} seeds")
        wanted = []
        for index in range(recipe.reference_seeds):
            seed = training_seed(recipe.seed, _SEED_STREAM, index)
            job = TrainJob(
                spec=spec, num_steps=recipe.proxy.rungs[0], seed=seed, learning_rate=rate
            )
            wanted.append(Training(job, files, files.rung(0, index)))
        try:
            stages = workshop.train(wanted)
        except CandidateFailed as error:
            # A mixer that cannot be trained alone is no reason to search nothing: noise is then
            # known of fewer stacks, with fewer degrees of freedom.
            announce(f"{mixer} alone cannot be trained, its noise stays unknown: {error}")
            continue
        rungs = tuple(stage.value for stage in stages)
        found.append(End(mixer, rungs, sum(stage.seconds for stage in stages)))
    return found
