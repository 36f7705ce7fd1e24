"""Before trial 0: learning rates, the reference preset, its noise, the scale of quality.

The reference preset is measured beside itself (an A/A run, one sample of the noise) and trained
with several seeds, and so are the anchor stacks, whose scores decide which measures count
and on which scale. All of it is fixed before the first trial and never changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from archloop.evals.base import Score
from archloop.profiling.record import Profile
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking import budgets, objectives
from archloop.ranking.anchors import Scale
from archloop.ranking.record import Objective, Readings
from archloop.search import anchoring
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.plan import Plan, Stream, stream_seed
from archloop.search.tuning import tune
from archloop.search.workshop import Training, Workshop
from archloop.store.folder import StudyFolder, TrialFolder
from archloop.store.record import FamilyRate
from archloop.store.reference_run import ReferenceRun, averaged, mean_rate
from archloop.store.stages import Stage

Announce = Callable[[Literal["tune", "reference"], str], None]
"""Called as a part begins, with a few words."""


def establish(
    plan: Plan, workshop: Workshop, folder: StudyFolder, key: str, announce: Announce
) -> ReferenceRun:
    """Tune, profile and train the reference preset, as far as that is not on disk already.

    Raises:
        StudyError: the reference preset or an anchor stack cannot be measured or trained.
    """
    try:
        return _establish(plan, workshop, folder, key, announce)
    except CandidateFailed as error:
        raise StudyError(
            f"the reference preset failed, so nothing can be compared with it: {error}"
        ) from error


def _establish(
    plan: Plan, workshop: Workshop, folder: StudyFolder, key: str, announce: Announce
) -> ReferenceRun:
    recipe = plan.recipe
    rates, tuning_s = tune(plan, workshop, folder, key, partial(announce, "tune"))
    files = folder.reference(f"{key}:{plan.reference.digest}")
    announce("reference", "measured beside itself")
    measured = workshop.profile(plan.reference, plan.reference, 1, files)
    _check_told(measured.value.profiles, recipe.objectives)
    anchored, trained, further = _trained(plan, workshop, folder, key, rates, files, announce)
    profiles = measured.value.profiles
    wanted = objectives.readable(recipe.objectives, anchored.scale)
    stages = [*trained, *further]
    scores = [stage.value.scores for stage in trained]
    by_rung = [
        objectives.of_reference(_scored(anchored.scale, each, wanted), wanted)
        for each in (scores, *([stage.value.scores] for stage in further))
    ]
    limited = budgets.limited(profiles, recipe.budgets)
    beside_itself = {
        **objectives.device(profiles, wanted),
        **{figure.name: figure.logs for figure in limited},
    }
    trainings = [*(stage.value for stage in stages), *anchored.rungs]
    eval_s = math.fsum(rung.eval_s for rung in trainings)
    return ReferenceRun(
        candidate=plan.reference_candidate,
        costs=plan.costs(plan.reference),
        worst=objectives.reference_point(profiles, recipe.budgets, wanted),
        objectives=tuple(by_rung),
        scores=averaged(scores),
        identities={target: profile.identity for target, profile in profiles.items()},
        scale=anchored.scale,
        dropped=anchored.dropped,
        noise=(beside_itself, *anchored.noise),
        anchors=anchored.scores,
        learning_rates=rates,
        files=dict(files.checksums),
        seconds={
            "profile": measured.seconds,
            "train": math.fsum(stage.seconds for stage in stages) + anchored.seconds - eval_s,
            "evaluate": eval_s,
            "tune": tuning_s,
        },
    )


def _check_told(profiles: Mapping[str, Profile], wanted: Sequence[Objective]) -> None:
    """Whether devices tell all that is to be read of each trial, before anything is trained.

    Raises:
        StudyError: they do not.
    """
    try:
        objectives.device(profiles, wanted)
    except ValueError as error:
        raise StudyError(
            f"objectives: {error}; leave that objective out, or name targets that can tell it"
        ) from error


def _trained(
    plan: Plan,
    workshop: Workshop,
    folder: StudyFolder,
    key: str,
    rates: dict[str, FamilyRate],
    files: TrialFolder,
    announce: Announce,
) -> tuple[anchoring.Anchoring, list[Stage[Rung]], list[Stage[Rung]]]:
    """The anchors' trainings, and the reference preset's: of rung 0 by seed, of each further rung.

    Raises:
        StudyError: the reference preset's training diverged.
    """
    recipe = plan.recipe
    rate = mean_rate(rates, plan.reference.layout)
    wanted = [
        _training(plan, files, rung=0, seed_index=index, rate=rate)
        for index in range(recipe.reference_seeds)
    ]
    anchors = anchoring.wanted(plan, folder, key, rates)
    names = ", ".join(["trained", *anchors])
    announce("reference", f"{names}: {recipe.reference_seeds} trainings each")
    # All trainings are submitted together, since none waits for another. A failure is reported
    # below, where it is known of which stack it is.
    with suppress(CandidateFailed):
        workshop.train([*wanted, *(each for stack in anchors.values() for each in stack)])
    trained = workshop.train(wanted)
    further: list[Stage[Rung]] = []
    for rung in range(1, len(recipe.proxy.rungs)):
        announce("reference", f"trained for rung {rung}")
        further += workshop.train([_training(plan, files, rung=rung, seed_index=0, rate=rate)])
    for rung in range(len(recipe.proxy.rungs)):
        files.checkpoint(rung).unlink(missing_ok=True)
    if any(stage.value.diverged for stage in (*trained, *further)):
        raise StudyError(
            "the training of the reference preset diverged; lower proxy.training.learning_rate"
        )
    rungs = [stage.value for stage in trained]
    say = partial(announce, "reference")
    return anchoring.train(plan, workshop, anchors, rungs, say), trained, further


def _scored(
    scale: Scale | None, trainings: Sequence[Mapping[str, Score]], wanted: Sequence[Objective]
) -> dict[str, Readings]:
    return {} if scale is None else objectives.of_scores(scale, trainings, wanted)


def _training(
    plan: Plan,
    files: TrialFolder,
    *,
    rung: int,
    seed_index: int,
    rate: float | None,
) -> Training:
    recipe = plan.recipe
    # Only the first seed climbs, so only it leaves a checkpoint and continues one.
    climbs, last = seed_index == 0, rung + 1 == len(recipe.proxy.rungs)
    before = files.checkpoint(rung - 1)
    job = TrainJob(
        spec=plan.reference_proxy,
        rung=rung,
        num_steps=recipe.proxy.rungs[rung],
        seed=stream_seed(recipe.seed, Stream.REFERENCE, seed_index),
        learning_rate=rate,
        resume_from=before if before.exists() else None,
        checkpoint_to=files.checkpoint(rung) if climbs and not last else None,
        weights_to=files.weights if climbs and recipe.keep != "none" else None,
    )
    return Training(job, files, files.rung(rung, seed_index))
