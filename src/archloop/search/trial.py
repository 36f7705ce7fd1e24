"""A trial as a state machine: what it has on disk says what it needs next.

    measuring -> (within budget) -> training rung 0, 1, ... -> ended
        |                               |
        +-- broken budget, unsupported, crash, nothing to train for --> ended

`Trial.advance` answers the next job; the study has it done and hands the result to `Trial.take`. So
a trial never waits, several may be under way at once, and one that was killed goes on by asking
again: what is on disk already is not done again. A trial fails only by its own workers; it is
rejected by a measured budget, before any training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from archloop.profiling.record import Profile
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking import looks, objectives
from archloop.ranking.estimates import pools
from archloop.ranking.record import Objective, Objectives, Readings
from archloop.search import gate, telling
from archloop.search.errors import StudyError
from archloop.search.evaluator import CandidateFailed, Unsupported
from archloop.search.executors.base import Ended, Measure, Train
from archloop.search.plan import Plan, training_seed
from archloop.search.workshop import Workshop
from archloop.store.database import Stored
from archloop.store.folder import StudyFolder
from archloop.store.record import Outcome
from archloop.store.reference_run import ReferenceRun
from archloop.store.stages import Profiled

State = Literal["measuring", "training", "ended"]

Announce = Callable[[Stored, Literal["profile", "train"], int | None], None]
"""Called as a stage begins: the trial, profile or train, and the rung."""


class Context(NamedTuple):
    """What every trial of a study shares.

    Attributes:
        key: of the study, part of each stage file's key.
        earlier: readings by figure of the reference run and of each trial told so far.
    """

    plan: Plan
    reference_run: ReferenceRun
    workshop: Workshop
    folder: StudyFolder
    key: str
    earlier: Callable[[], Sequence[Mapping[str, Readings]]]
    announce: Announce


class _Needed(Exception):  # noqa: N818  (no error: it unwinds the gate, which asks for a look)
    """The gate asks for a look that is not on disk."""

    def __init__(self, look: int) -> None:
        self.look = look


class Trial:
    """One trial under way.

    Args:
        context: of the study.
        stored: the trial as the database has it.
        to_rung: that it is trained to; the study says when it may climb (`rungs.due`).

    Attributes:
        state: what it is at.
        outcome: once it has ended, without what only the study knows: the hypervolume that it adds.
    """

    def __init__(self, context: Context, stored: Stored, to_rung: int = 0) -> None:
        self.stored = stored
        self._to_rung = to_rung
        self.state: State = "measuring"
        self.outcome: Outcome | None = None
        self._context = context
        self._files = context.folder.trial(
            stored.number, f"{context.key}:{stored.number}:{stored.candidate.spec.digest}"
        )
        self._stage = ""
        self._seconds = {"profile": 0.0, "train": 0.0, "evaluate": 0.0}
        self._verdict: gate.Verdict | None = None
        self._left_out: set[str] = set()
        self._reached: list[Objectives] = []
        self._diverged = False

    def advance(self) -> Measure | Train | None:
        """The job that this trial needs next; None once it has ended.

        Raises:
            StudyError: what it was measured on is not what the reference preset was measured on.
        """
        while self.state != "ended":
            job = self._measure() if self.state == "measuring" else self._train()
            if job is not None:
                return job
        return None

    def take(self, ended: Ended) -> None:
        """What came of the last job; afterwards `advance` goes on.

        Raises:
            OSError: the disk is full, or not writable.
        """
        error = ended.error
        if error is None:
            assert ended.value is not None
            self._context.workshop.keep(self._files, self._stage, ended)
        elif not isinstance(error, CandidateFailed):
            raise error
        elif self._reached:
            # The results of lower rungs stand; only the longer training is lost.
            self._complete(f"rung {len(self._reached)}: {error}")
        elif (told := self.stored.outcome) is not None and told.reached:
            # So do those of the trainings that it had; one more was asked for, and is tried again
            # when the study next goes on.
            self.outcome = told.model_copy(update={"error": f"one more training: {error}"})
            self.state = "ended"
        else:
            state: Literal["unsupported", "failed"] = "failed"
            if isinstance(error, Unsupported):
                state = "unsupported"
            self._end(Outcome(state=state, error=str(error)))

    # --- states -------------------------------------------------------------------------------

    def _measure(self) -> Measure | None:
        plan, spec = self._context.plan, self.stored.candidate.spec
        recipe = plan.recipe
        self._adopt_reference()
        seconds: dict[int, float] = {}

        def look_at(look: int) -> dict[str, Profile]:
            stage = self._files.load(self._files.profile(look), Profiled)
            if stage is None:
                raise _Needed(look)
            seconds[look], self._left_out = stage.seconds, set(stage.value.left_out)
            _check_identity(self._context.reference_run, stage.value.profiles)
            return stage.value.profiles

        # A trial that has trained already passed the gate earlier. The noise is estimated anew as
        # trials are told, and must neither reject it now nor ask for another look.
        trained = self._files.load(self._files.rung(0), Rung) is not None
        first = 1
        try:
            while first < recipe.looks and self._has_look(first + 1):
                look_at(first)
                first += 1
            num_looks = first if trained else recipe.looks
            earlier = self._context.earlier()
            verdict = gate.judge(look_at, recipe.budgets, earlier, num_looks, first)
        except _Needed as needed:
            self._context.announce(self.stored, "profile", None)
            self._stage = self._files.profile(needed.look)
            size = self._look_size(needed.look)
            return Measure(spec, plan.reference, needed.look, self._files.samples, size)
        self._seconds["profile"] = sum(seconds.values())
        self._verdict = verdict
        if (reason := _untold(verdict.profiles, recipe.objectives)) is not None:
            # Such as energy, where the device's counter failed meanwhile: this trial has no place
            # in the ranking, and no other is the worse for it.
            self._end(Outcome(state="failed", error=f"profiling: {reason}"))
            return None
        if verdict.broken and (self._is_partial or not trained):
            # One that has trained is rejected only where its measurement was lost and the new one
            # ended at a broken budget: the worst of all targets, by which it would be ranked, is
            # then not known any more.
            self._end(
                Outcome(
                    state="rejected",
                    readings=self._readings,
                    broken=verdict.broken,
                    straddles=verdict.straddles,
                    excess=verdict.excess,
                )
            )
        elif plan.trains:
            self.state = "training"
        else:
            values = objectives.objectives(verdict.profiles, {}, recipe.objectives)
            self._reached.append(values)
            self._complete(None)
        return None

    def _train(self) -> Train | None:
        assert self._verdict is not None
        files, index = self._files, len(self._reached)
        stages = []
        # Only the first training climbs, so only rung 0 is trained several times.
        for seed_index in range(self._context.plan.recipe.seeds if index == 0 else 1):
            name = files.rung(index, seed_index or None)
            stage = files.load(name, Rung)
            if stage is None:
                self._context.announce(self.stored, "train", index)
                self._stage = name
                return Train(self._job(index, seed_index), files.work(name))
            stages.append(stage)
        trained = [stage.value for stage in stages]
        for stage in stages:
            self._seconds["train"] += stage.seconds - stage.value.eval_s
            self._seconds["evaluate"] += stage.value.eval_s
        wanted, run = self._context.plan.recipe.objectives, self._context.reference_run
        values = _objectives(run, self._verdict.profiles, trained, wanted)
        self._reached.append(values)
        self._diverged = any(rung.diverged for rung in trained)
        if index >= self._to_rung or self._diverged:
            self._complete(None)
        return None

    def _has_look(self, look: int) -> bool:
        return self._files.load(self._files.profile(look), Profiled) is not None

    def _look_size(self, look: int) -> int | None:
        """Processes of a look, all of a trial's being of one size; None for the recipe's."""
        recipe = self._context.plan.recipe
        if recipe.resolve is None or not recipe.budgets:
            return None
        first = self._files.load(self._files.profile(1), Profiled)
        if look > 1 and first is not None:
            return max(profile.num_processes for profile in first.value.profiles.values())
        known = pools(self._context.earlier())
        contexts = {name: target.contexts for name, target in recipe.targets.items()}
        limited = telling.limits(recipe.budgets, contexts)
        noise = [known[name] for name in limited if name in known]
        return looks.size(noise, recipe.looks, recipe.resolve, recipe.profile.processes)

    # --- ends ---------------------------------------------------------------------------------

    def _complete(self, error: str | None) -> None:
        assert self._verdict is not None
        self._end(
            Outcome(
                state="complete",
                by_rung=tuple(self._reached),
                readings=self._readings,
                diverged=self._diverged,
                straddles=self._verdict.straddles,
                error=error,
            )
        )

    def _end(self, outcome: Outcome) -> None:
        # Where the trial may climb later, the next rung goes on from the last one's checkpoint.
        waits = outcome.state == "complete" and not outcome.diverged and outcome.error is None
        self._files.forget_checkpoints(but=len(self._reached) - 1 if waits else None)
        made = {"files": dict(self._files.checksums), "seconds": dict(self._seconds)}
        self.outcome = outcome.model_copy(update=made)
        self.state = "ended"

    @property
    def _is_partial(self) -> bool:
        """Whether it was measured up to a target whose budget it broke, and not on the others.

        Its worst of all targets is then not known (`gate.breaks`).
        """
        assert self._verdict is not None
        told = self._verdict.profiles.keys() | self._left_out
        return bool(self._verdict.broken and self._context.plan.recipe.targets.keys() - told)

    @property
    def _readings(self) -> dict[str, Readings]:
        assert self._verdict is not None
        limited = self._verdict.readings
        if self._is_partial:
            return dict(limited)
        wanted = self._context.plan.recipe.objectives
        return {**objectives.device(self._verdict.profiles, wanted), **limited}

    # --- jobs ---------------------------------------------------------------------------------

    def _job(self, rung: int, seed_index: int) -> TrainJob:
        recipe, candidate = self._context.plan.recipe, self.stored.candidate
        before = self._files.checkpoint(rung - 1)
        last = rung + 1 == len(recipe.proxy.rungs)
        return TrainJob(
            spec=candidate.proxy_spec,
            rung=rung,
            num_steps=recipe.proxy.rungs[rung],
            seed=training_seed(recipe.seed, self.stored.number, seed_index),
            learning_rate=self._context.reference_run.learning_rate(candidate.spec.layout),
            resume_from=before if before.exists() else None,
            checkpoint_to=None if last or seed_index else self._files.checkpoint(rung),
            weights_to=None if recipe.keep == "none" or seed_index else self._files.weights,
        )

    def _adopt_reference(self) -> None:
        """The reference preset, met by a strategy: it has been measured beside itself already.

        Where the recipe names it as a stack to try, it is measured anew: it is asked for.
        """
        candidate, name = self.stored.candidate, self._files.profile(1)
        spec = candidate.spec
        if spec != self._context.plan.reference or candidate.replicates is not None:
            return
        if candidate.genome is None:
            return
        if self._files.load(name, Profiled) is not None:
            return
        key = f"{self._context.key}:{spec.digest}"
        measured = self._context.folder.reference(key).load(name, Profiled)
        if measured is not None:
            self._files.save(name, measured.value, 0.0)


def _objectives(
    reference_run: ReferenceRun,
    profiles: Mapping[str, Profile],
    trained: Sequence[Rung],
    wanted: Sequence[Objective],
) -> Objectives:
    """Of the trainings of a rung; if one diverged, they are worth what no skill at all is."""
    if any(rung.diverged for rung in trained):
        scored = objectives.without_skill(wanted)
    else:
        assert reference_run.scale is not None, "nothing is trained without a scale"
        trainings = [rung.scores for rung in trained]
        scored = objectives.of_scores(reference_run.scale, trainings, wanted)
    return objectives.objectives(profiles, scored, wanted)


def _untold(profiles: Mapping[str, Profile], wanted: Sequence[Objective]) -> str | None:
    """What the devices did not tell, though they told it of the reference preset; or None."""
    try:
        objectives.device(profiles, wanted)
    except ValueError as error:
        return str(error)
    return None


def _check_identity(reference_run: ReferenceRun, profiles: dict[str, Profile]) -> None:
    """Measurements compare only where device, runtime, precision and the rest match."""
    for target, profile in profiles.items():
        expected = reference_run.identities[target]
        if profile.identity != expected:
            raise StudyError(
                f"measurements on {target} would not compare with the reference preset's: "
                f"{expected.changes(profile.identity)}; go back to what it was, or start a study "
                "of another name"
            )
