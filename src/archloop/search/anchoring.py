"""Anchor stacks trained before trial 0, and the scale of quality that they give.

Each is trained as often as the reference preset, which is one of them. What they cost also pays for
knowing the noise: nine trainings of three stacks have 6 degrees of freedom.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from archloop.errors import suggest
from archloop.evals.base import Score
from archloop.proxy import scoring
from archloop.proxy.mixture import make_task
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking import anchors
from archloop.ranking.anchors import Scale
from archloop.ranking.objectives import of_scores
from archloop.ranking.record import Readings
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.plan import Plan, Stream, stream_seed
from archloop.search.recipe.recipe import REFERENCE
from archloop.search.workshop import Training, Workshop
from archloop.space.checking import farthest
from archloop.store.folder import StudyFolder
from archloop.store.record import FamilyRate
from archloop.store.reference_run import averaged, mean_rate


class Anchoring(NamedTuple):
    """What the anchor stacks showed.

    Attributes:
        scale: how scores become quality; None if no score tells the anchor stacks apart.
        dropped: why each other score does not count.
        noise: objectives of scores, of each stack that was trained several times.
        scores: averaged over trainings, by stack, the reference aside.
        rungs: all trainings, the reference's aside; `seconds` is what these took.
    """

    scale: Scale | None
    dropped: dict[str, str]
    noise: list[dict[str, Readings]]
    scores: dict[str, dict[str, Score]]
    rungs: list[Rung]
    seconds: float


def wanted(
    plan: Plan, folder: StudyFolder, key: str, rates: Mapping[str, FamilyRate]
) -> dict[str, list[Training]]:
    """Trainings of each anchor stack by name, the reference preset aside.

    Args:
        plan: of the study.
        folder: of the study.
        key: of the study.
        rates: tuned learning rates; empty if none were tuned.
    """
    found: dict[str, list[Training]] = {}
    for index, (name, spec) in enumerate(plan.anchors.stacks.items()):
        files = folder.anchor(index, f"{key}:{spec.digest}")
        rate = mean_rate(rates, spec.layout)
        for number in range(plan.recipe.reference_seeds):
            seed = stream_seed(plan.recipe.seed, Stream.ANCHORS, index, number)
            num_steps = plan.recipe.proxy.rungs[0]
            job = TrainJob(spec=spec, num_steps=num_steps, seed=seed, learning_rate=rate)
            found.setdefault(name, []).append(Training(job, files, files.rung(0, number)))
    return found


def train(
    plan: Plan,
    workshop: Workshop,
    trainings: Mapping[str, Sequence[Training]],
    reference: Sequence[Rung],
    announce: Callable[[str], None],
) -> Anchoring:
    """Train each anchor stack, as far as that is not on disk already, and read off the scale.

    Args:
        plan: of the study.
        workshop: that trains.
        trainings: of each stack (`wanted`).
        reference: trainings of the reference preset at rung 0.
        announce: told of a stack that cannot be trained.

    Raises:
        StudyError: a stack without which no scale is cannot be trained.
    """
    found: dict[str, list[Rung]] = {REFERENCE: list(reference)}
    seconds = []
    for name, each in trainings.items():
        try:
            stages = workshop.train(each)
        except CandidateFailed as error:
            _require_spare(plan, name, f"cannot be trained: {error}")
            announce(f"{name} cannot be trained, its noise stays unknown: {error}")
            continue
        seconds += [stage.seconds for stage in stages]
        found[name] = [stage.value for stage in stages]
        if any(rung.diverged for rung in found[name]):
            _require_spare(plan, name, "diverged; lower proxy.training.learning_rate")
    others = [rung for name, rungs in found.items() if name != REFERENCE for rung in rungs]
    # A stack that diverges shows no noise of its own; the stacks that train well do.
    trained = {n: rungs for n, rungs in found.items() if not any(r.diverged for r in rungs)}
    scale, dropped = measured(plan, {n: [r.scores for r in each] for n, each in trained.items()})
    return Anchoring(
        scale,
        dropped,
        _noise(plan, scale, trained),
        {n: averaged([r.scores for r in each]) for n, each in trained.items() if n != REFERENCE},
        others,
        math.fsum(seconds),
    )


def _noise(
    plan: Plan, scale: Scale | None, trained: Mapping[str, Sequence[Rung]]
) -> list[dict[str, Readings]]:
    if scale is None:
        return []
    try:
        return [
            of_scores(scale, [rung.scores for rung in each], plan.recipe.objectives)
            for each in trained.values()
        ]
    except ValueError as error:
        raise StudyError(f"objectives: {error}") from error


def measured(
    plan: Plan, stacks: Mapping[str, Sequence[Mapping[str, Score]]]
) -> tuple[Scale | None, dict[str, str]]:
    """The scale that scores of anchor stacks give, and why each score that it leaves out is.

    The scale is None if no score tells the anchor stacks apart.

    Args:
        plan: of the study.
        stacks: scores of each training, by stack.

    Raises:
        RecipeError: a pair of anchors is for no score and no category that there is.
    """
    _check_pairs(plan, next(iter(stacks.values()))[0])
    short = too_short(plan)
    long_enough = {
        name: [{k: score for k, score in scores.items() if k not in short} for scores in each]
        for name, each in stacks.items()
    }
    scale, dropped = anchors.measure(long_enough, plan.anchors.pairs, plan.anchors.default)
    return scale, {**dropped, **short}


def _check_pairs(plan: Plan, scores: Mapping[str, Score]) -> None:
    """Every pair is for something: its scores would have the default pair without a word."""
    categories = (score.category for score in scores.values())
    known = list(dict.fromkeys([*scores, *categories]))
    for key in plan.anchors.pairs:
        if key not in known:
            raise plan.recipe.error(
                f"anchors.{key}: neither a score nor a category; {suggest(key, known)}"
            )


def too_short(plan: Plan) -> dict[str, str]:
    """Scores that leave quality because a window of the space sees most of their rows, and why."""
    proxy = plan.recipe.proxy
    tasks = {name: make_task(name, share.settings) for name, share in proxy.tasks.items()}
    lengths = {name: task.config.seq_len for name, task in tasks.items()}
    return scoring.too_short(proxy, lengths, farthest(plan.space)[1])


def _require_spare(plan: Plan, name: str, what: str) -> None:
    """A stack that only shows noise may fail, and noise is then known with fewer degrees."""
    if name in plan.anchors.needed:
        raise StudyError(f"the anchor stack {name} {what}; name another one under anchors")
