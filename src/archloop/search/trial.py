"""One trial: specs, profile, budgets, rungs. What is on disk already is not done again.

A trial fails only by its own workers; it is rejected by a measured budget, before any training.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from archloop.profiling.record import Profile
from archloop.ranking import objectives
from archloop.ranking.record import Objectives, Readings
from archloop.search import gate
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed, TrainJob, Unsupported
from archloop.search.plan import Plan, training_seed
from archloop.search.rungs import Standings, promoted
from archloop.search.workshop import Workshop, checkpoint
from archloop.space.genome import Genome
from archloop.store import store
from archloop.store.baseline import FOLDER as REFERENCE
from archloop.store.baseline import Baseline
from archloop.store.database import Result, Stored
from archloop.store.record import (
    Rung,
)
from archloop.store.stages import Profiled, Proposed, Stage, StageFiles

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
    folder: Path
    key: str
    at_rung: Sequence[Standings]
    earlier: Sequence[Mapping[str, Readings]]
    announce: Announce


def run(context: Context, trial: Stored) -> Result:
    """Run a trial to its end, or take up where it was left; the result lacks the study's part.

    Raises:
        StudyError: what it was measured on is not what the reference preset was measured on.
        OSError: the disk is full, or not writable.
    """
    files = StageFiles(
        store.trial_folder(context.folder, trial.number),
        f"{context.key}:{trial.number}:{trial.digest}",
    )
    proposed = _proposed(context, trial, files)
    seconds = {"profile": 0.0, "train": 0.0, "evaluate": 0.0}
    try:
        result = _run(context, trial, proposed, files, seconds)
    except Unsupported as error:
        result = Result(state="unsupported", error=str(error))
    except CandidateFailed as error:
        result = Result(state="failed", error=str(error))
    for rung in range(len(context.plan.recipe.proxy.rungs)):
        checkpoint(files.folder, rung).unlink(missing_ok=True)
    return result.model_copy(update={"files": dict(files.checksums), "seconds": seconds})


def _proposed(context: Context, trial: Stored, files: StageFiles) -> Proposed:
    done = files.load("spec", Proposed)
    if done is not None:
        return done.value
    shutil.rmtree(files.folder, ignore_errors=True)
    spec, proxy_spec = context.plan.specs(Genome.model_validate(trial.genome))
    costs = context.plan.costs(spec)
    proposed = Proposed(spec=spec, proxy_spec=proxy_spec, costs=costs)
    return files.save("spec", proposed, 0.0).value


def _run(
    context: Context,
    trial: Stored,
    proposed: Proposed,
    files: StageFiles,
    seconds: dict[str, float],
) -> Result:
    plan, workshop = context.plan, context.workshop

    def measure(look: int) -> dict[str, Profile]:
        context.announce("profile", None)
        if look == 1 and proposed.spec == plan.reference:
            _adopt_reference(context.folder, f"{context.key}:{proposed.spec.digest}", files)
        stage = workshop.profile(proposed.spec, plan.reference, look, files)
        seconds["profile"] += stage.seconds
        _check_identity(context.baseline, stage.value.profiles)
        return stage.value.profiles

    verdict = gate.judge(measure, plan.recipe.budgets, context.earlier, plan.recipe.looks)
    readings = {**objectives.device(verdict.profiles), **verdict.readings}
    if verdict.broken:
        return Result(
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
            stage = _train(context, trial, proposed, files, rung)
        except CandidateFailed as failure:
            if rung == 0:
                raise
            # What rung 0 gave stands; only the longer training is lost.
            error = f"rung {rung}: {failure}"
            break
        seconds["train"] += stage.seconds - stage.value.seconds_eval
        seconds["evaluate"] += stage.value.seconds_eval
        values = _objectives(context.baseline, verdict.profiles, stage.value)
        others = context.at_rung[rung]
        reached.append(values)
        diverged = stage.value.diverged
        if rung + 1 == len(plan.recipe.proxy.rungs) or diverged:
            break
        worst, share = context.baseline.worst, plan.recipe.promote_share
        seed = [plan.recipe.seed, trial.number, rung]
        noise = context.baseline.noise
        if not promoted(values, others, noise, worst, share, seed):
            break
    return Result(
        state="complete",
        objectives=tuple(reached),
        readings=readings,
        diverged=diverged,
        straddles=verdict.straddles,
        error=error,
    )


def _adopt_reference(study: Path, key: str, files: StageFiles) -> None:
    """The reference preset itself as a trial: it has been measured beside itself already."""
    measured = StageFiles(study / REFERENCE, key).load("profile", Profiled)
    if measured is not None and files.load("profile", Profiled) is None:
        files.save("profile", measured.value, 0.0)


def _train(
    context: Context, trial: Stored, proposed: Proposed, files: StageFiles, rung: int
) -> Stage[Rung]:
    recipe = context.plan.recipe
    context.announce("train", rung)
    before = checkpoint(files.folder, rung - 1)
    last = rung + 1 == len(recipe.proxy.rungs)
    job = TrainJob(
        spec=proposed.proxy_spec,
        rung=rung,
        num_steps=recipe.proxy.rungs[rung],
        seed=training_seed(recipe.seed, trial.number),
        learning_rate=context.baseline.learning_rate(proposed.spec.layout),
        resume_from=before if before.exists() else None,
        checkpoint_to=None if last else checkpoint(files.folder, rung),
    )
    return context.workshop.train(job, files, f"rung-{rung}")


def _objectives(baseline: Baseline, profiles: Mapping[str, Profile], rung: Rung) -> Objectives:
    """Of a rung; a training that diverged is worth no more than guessing."""
    if not rung.diverged:
        return objectives.objectives(profiles, rung.scores, baseline.admitted)
    chance = {
        task: score.model_copy(update={"value": score.chance, "standard_error": 0.0})
        for task, score in baseline.scores.items()
    }
    return objectives.objectives(profiles, chance, baseline.admitted)


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
