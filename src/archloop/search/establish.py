"""Before trial 0: learning rates, the reference preset, its noise, and the reference point.

The reference preset is measured beside itself (an A/A run, whose intervals are the noise floor) and
trained with several seeds. Its scores decide which tasks carry signal. All of it is fixed before
the first trial and never changes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from archloop.proxy import scoring
from archloop.proxy.mixture import make_task
from archloop.proxy.record import TrainJob
from archloop.ranking import budgets, objectives
from archloop.search import ends
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.plan import Plan, training_seed
from archloop.search.tuning import tune
from archloop.search.workshop import Training, Workshop
from archloop.space.checking import farthest
from archloop.store.folder import StudyFolder, TrialFolder
from archloop.store.reference_run import ReferenceRun, averaged, mean_rate

_SEED_STREAM = 2**32
"""Added to a seed's index: training seeds of the reference preset are no trial's."""


Announce = Callable[[Literal["tune", "reference"], str], None]
"""Called as a part begins, with a few words."""


def establish(
    plan: Plan, workshop: Workshop, folder: StudyFolder, key: str, announce: Announce
) -> ReferenceRun:
    """Tune, profile and train the reference preset, as far as that is not on disk already.

    Raises:
        StudyError: the reference preset cannot be measured or trained, or no task carries signal.
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
    rate = mean_rate(rates, plan.reference.layout)
    announce("reference", f"trained with {recipe.reference_seeds} seeds")
    wanted = [
        _training(plan, files, rung=0, seed_index=index, rate=rate)
        for index in range(recipe.reference_seeds)
    ]
    trained = workshop.train(wanted)
    stages = list(trained)
    for rung in range(1, len(recipe.proxy.rungs)):
        announce("reference", f"trained for rung {rung}")
        stages += workshop.train([_training(plan, files, rung=rung, seed_index=0, rate=rate)])
    for rung in range(len(recipe.proxy.rungs)):
        files.checkpoint(rung).unlink(missing_ok=True)
    if any(stage.value.diverged for stage in stages):
        raise StudyError(
            "the training of the reference preset diverged; lower proxy.training.learning_rate"
        )
    scores = averaged([stage.value.scores for stage in trained])
    admitted, dropped = objectives.admitted(scores)
    short = too_short(plan)
    admitted = tuple(task for task in admitted if task not in short)
    dropped = {**dropped, **short}
    if not admitted:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in dropped.items())
        raise StudyError(f"no task carries signal ({reasons}); train longer or name easier tasks")
    qualities = [objectives.quality(stage.value.scores, admitted)[0] for stage in trained]
    profiles = measured.value.profiles
    by_rung = [
        objectives.of_reference(qualities),
        *(
            objectives.of_reference([objectives.quality(stage.value.scores, admitted)[0]])
            for stage in stages[len(trained) :]
        ),
    ]
    found_ends = ends.train(plan, workshop, folder, key, rates, partial(announce, "reference"))
    noise = [{"quality": objectives.readings(qualities)}]
    for end in found_ends:
        # An end that diverges shows no noise of its own; the stacks that train well do.
        if not any(rung.diverged for rung in end.rungs):
            values = [objectives.quality(rung.scores, admitted)[0] for rung in end.rungs]
            noise.append({"quality": objectives.readings(values)})
    limited = budgets.limited(profiles, recipe.budgets)
    beside_itself = {
        **objectives.device(profiles),
        **{figure.name: figure.logs for figure in limited},
    }
    trainings = [*(stage.value for stage in stages), *(r for end in found_ends for r in end.rungs)]
    eval_s = math.fsum(rung.eval_s for rung in trainings)
    return ReferenceRun(
        candidate=plan.reference_candidate,
        costs=plan.costs(plan.reference),
        worst=objectives.reference_point(profiles, recipe.budgets),
        objectives=tuple(by_rung),
        scores=scores,
        identities={target: profile.identity for target, profile in profiles.items()},
        admitted=admitted,
        dropped=dropped,
        noise=(beside_itself, *noise),
        ends={end.mixer: averaged([rung.scores for rung in end.rungs]) for end in found_ends},
        learning_rates=rates,
        files=dict(files.checksums),
        seconds={
            "profile": measured.seconds,
            "train": math.fsum(
                [*(stage.seconds for stage in stages), *(end.seconds for end in found_ends)]
            )
            - eval_s,
            "evaluate": eval_s,
            "tune": tuning_s,
        },
    )


def too_short(plan: Plan) -> dict[str, str]:
    """Scores that leave quality because a window of the space sees most of their rows, and why."""
    proxy = plan.recipe.proxy
    tasks = {name: make_task(name, share.settings) for name, share in proxy.tasks.items()}
    lengths = {name: task.config.seq_len for name, task in tasks.items()}
    return scoring.too_short(proxy, lengths, farthest(plan.space)[1])


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
        seed=training_seed(recipe.seed, _SEED_STREAM + seed_index),
        learning_rate=rate,
        resume_from=before if before.exists() else None,
        checkpoint_to=files.checkpoint(rung) if climbs and not last else None,
        weights_to=files.weights if climbs and recipe.keep != "none" else None,
    )
    return Training(job, files, files.rung(rung, seed_index))
