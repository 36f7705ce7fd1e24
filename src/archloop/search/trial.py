"""One trial: profile, budgets, rungs. What is on disk already is not done again.

A trial fails only by its own workers; it is rejected by a measured budget, before any training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from archloop.profiling.record import Profile
from archloop.ranking import objectives
from archloop.ranking.record import Objectives, Readings
from archloop.search import gate
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed, TrainJob, Unsupported
from archloop.search.plan import Plan, training_seed
from archloop.search.rungs import Standings, promoted
from archloop.search.workshop import Workshop
from archloop.store.baseline import Baseline
from archloop.store.database import Stored
from archloop.store.folder import StudyFolder, TrialFolder
from archloop.store.record import Outcome, Rung
from archloop.store.stages import Profiled, Stage

Announce = Callable[[Literal["profile", "train"], int | None], None]
"""Called as a stage begins: profile or train, and the rung."""


class Context(NamedTuple):
    """What every trial of a study shares.

    Attributes:
        key: of the study, part of each stage file's key.
        at_rung: the told trials at each rung.
        earlier: readings by figure of the reference run and of each trial measured so far.
    """

    plan: Plan
    baseline: Baseline
    workshop: Workshop
    folder: StudyFolder
    key: str
    at_rung: Sequence[Standings]
    earlier: Sequence[Mapping[str, Readings]]
    announce: Announce


def run(context: Context, trial: Stored) -> Outcome:
    """Run a trial to its end, or take up where it was left; the result lacks the study's part.

    Raises:
        StudyError: what it was measured on is not what the reference preset was measured on.
        OSError: the disk is full, or not writable.
    """
    files = context.folder.trial(
        trial.number, f"{context.key}:{trial.number}:{trial.candidate.spec.digest}"
    )
    seconds = {"profile": 0.0, "train": 0.0, "evaluate": 0.0}
    try:
        outcome = _run(context, trial, files, seconds)
    except Unsupported as error:
        outcome = Outcome(state="unsupported", error=str(error))
    except CandidateFailed as error:
        outcome = Outcome(state="failed", error=str(error))
    for rung in range(len(context.plan.recipe.proxy.rungs)):
        files.checkpoint(rung).unlink(missing_ok=True)
    return outcome.model_copy(update={"files": dict(files.checksums), "seconds": seconds})


def _run(
    context: Context,
    trial: Stored,
    files: TrialFolder,
    seconds: dict[str, float],
) -> Outcome:
    plan, workshop, spec = context.plan, context.workshop, trial.candidate.spec

    def measure(look: int) -> dict[str, Profile]:
        context.announce("profile", None)
        if look == 1 and spec == plan.reference:
            _adopt_reference(context.folder, f"{context.key}:{spec.digest}", files)
        stage = workshop.profile(spec, plan.reference, look, files)
        seconds["profile"] += stage.seconds
        _check_identity(context.baseline, stage.value.profiles)
        return stage.value.profiles

    verdict = gate.judge(measure, plan.recipe.budgets, context.earlier, plan.recipe.looks)
    readings = {**objectives.device(verdict.profiles), **verdict.readings}
    if verdict.broken:
        return Outcome(
            state="rejected",
            readings=readings,
            broken=verdict.broken,
            straddles=verdict.straddles,
            excess=verdict.excess,
        )
    reached: list[Objectives] = []
    error, diverged = None, False
    for rung in range(len(plan.recipe.proxy.rungs)):
        try:
            # Only the first training climbs, so only rung 0 is trained several times.
            stages = [
                _train(context, trial, files, rung, index)
                for index in range(plan.recipe.seeds if rung == 0 else 1)
            ]
        except CandidateFailed as failure:
            if rung == 0:
                raise
            # What rung 0 gave stands; only the longer training is lost.
            error = f"rung {rung}: {failure}"
            break
        for stage in stages:
            seconds["train"] += stage.seconds - stage.value.seconds_eval
            seconds["evaluate"] += stage.value.seconds_eval
        trained = [stage.value for stage in stages]
        values = _objectives(context.baseline, verdict.profiles, trained)
        others = context.at_rung[rung]
        reached.append(values)
        diverged = any(rung_.diverged for rung_ in trained)
        if rung + 1 == len(plan.recipe.proxy.rungs) or diverged:
            break
        worst, share = context.baseline.worst, plan.recipe.promote_share
        seed = [plan.recipe.seed, trial.number, rung]
        noise = context.baseline.noise
        if not promoted(values, others, noise, worst, share, seed):
            break
    return Outcome(
        state="complete",
        by_rung=tuple(reached),
        readings=readings,
        diverged=diverged,
        straddles=verdict.straddles,
        error=error,
    )


def _adopt_reference(study: StudyFolder, key: str, files: TrialFolder) -> None:
    """The reference preset itself as a trial: it has been measured beside itself already."""
    measured = study.reference(key).load(files.profile(1), Profiled)
    if measured is not None and files.load(files.profile(1), Profiled) is None:
        files.save(files.profile(1), measured.value, 0.0)


def _train(
    context: Context, trial: Stored, files: TrialFolder, rung: int, seed_index: int
) -> Stage[Rung]:
    recipe = context.plan.recipe
    context.announce("train", rung)
    before = files.checkpoint(rung - 1)
    last = rung + 1 == len(recipe.proxy.rungs)
    job = TrainJob(
        spec=trial.candidate.proxy_spec,
        rung=rung,
        num_steps=recipe.proxy.rungs[rung],
        seed=training_seed(recipe.seed, trial.number, seed_index),
        learning_rate=context.baseline.learning_rate(trial.candidate.spec.layout),
        resume_from=before if before.exists() else None,
        checkpoint_to=None if last or seed_index else files.checkpoint(rung),
    )
    return context.workshop.train(job, files, files.rung(rung, seed_index or None))


def _objectives(
    baseline: Baseline, profiles: Mapping[str, Profile], trained: Sequence[Rung]
) -> Objectives:
    """Of the trainings of a rung; if one diverged, they are worth no more than guessing."""
    if not any(rung.diverged for rung in trained):
        scores = [rung.scores for rung in trained]
        return objectives.objectives(profiles, scores, baseline.admitted)
    chance = {
        task: score.model_copy(update={"value": score.chance, "standard_error": 0.0})
        for task, score in baseline.scores.items()
    }
    return objectives.objectives(profiles, [chance], baseline.admitted)


def _check_identity(baseline: Baseline, profiles: dict[str, Profile]) -> None:
    """Measurements compare only where device, runtime, precision and the rest match."""
    for target, profile in profiles.items():
        expected = baseline.identities[target]
        if profile.identity != expected:
            fields = [
                f"{name} was {getattr(expected, name)!r}, is {value!r}"
                for name, value in profile.identity
                if getattr(expected, name) != value
            ]
            raise StudyError(
                f"measurements on {target} would not compare with the reference preset's: "
                f"{'; '.join(fields)}; go back to what it was, or start a study of another name"
            )
