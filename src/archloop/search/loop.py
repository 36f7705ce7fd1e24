"""The loop of a study in one process, from opening its store to the last trial.

1. Take in what the runs before this one left: the reference run and the told trials.
2. Tune, measure and train the reference preset, as far as that is not there (`establish`).
3. Take what is next on the agenda and hand its jobs to the executor, as many trials at once as it
   has slots.
4. Tell each trial that ended: to the database first, then to the results in memory.
5. When nothing is left to do and nothing under way, the study has ended.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from archloop.devices.lease import Listener
from archloop.errors import UserError
from archloop.search import feasible, so_far, trial
from archloop.search.agenda import Agenda
from archloop.search.anchoring import too_short
from archloop.search.deadline import OutOfTimeError
from archloop.search.establish import establish
from archloop.search.executors.base import Executor
from archloop.search.keeping import Keeper
from archloop.search.meter import Meter
from archloop.search.plan import Plan
from archloop.search.results import Results
from archloop.search.trial import Trial
from archloop.search.workshop import Workshop
from archloop.store import reading
from archloop.store.database import Database, Stored
from archloop.store.folder import StudyFolder, TrialFolder
from archloop.store.progress import Event, Likely, Phase, Progress, nobody
from archloop.store.record import Outcome
from archloop.store.reference_run import ReferenceRun


class Loop:
    """One process's work on a study.

    Args:
        plan: of the study.
        home: its folder.
        database: its rows, opened by this process alone.
        executor: who measures and trains.
        meter: that has run since the process began with the study.
        progress: called with each event.
    """

    def __init__(
        self,
        plan: Plan,
        home: StudyFolder,
        database: Database,
        executor: Executor,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self.home, self.database, self.executor = home, database, executor
        # Of the study's own card: a recipe read by a later archloop may have keys that it had not.
        self.key = str(database.attribute("card")["digest"])[:16]
        self._begin(plan)
        self.meter, self.progress = meter, progress
        self.workshop = Workshop(executor, meter, self._listener)
        # Wall time: of the runs before this one, of this one up to its first trial; trials told.
        self.spent_before = float(database.attribute("spent_s") or 0.0)
        self.began_s, self.num_told_here = 0.0, 0
        self.num_trials = int(database.attribute("num_trials") or self.recipe.num_trials)
        self.reference_point: tuple[float, ...] | None = None
        self._latest = Event("setup")

    def run(self, redo: bool, more: int, seeds: int | None) -> None:
        """All that is left to do, and more trials or trainings.

        Args:
            redo: also do the stages of told trials whose files are lost once more.
            more: trials beyond those asked for so far, once these are told.
            seeds: trainings of each trial at rung 0; None for as many as so far.

        Raises:
            NoFeasibleTrial: all trials are told and none kept the budgets.
            OutOfTimeError: something is left to do, and the executor's deadline is near.
            UserError: the study has more trainings a trial already.
        """
        self._extend(more)
        self._deepen(seeds)
        self._say("setup")
        with self.meter.phase():
            self._prepare()
        reference_run = self._reference_run(self.meter.last)
        if reference_run.scale is None:
            self._begin(self.plan.of_devices())
        worst = reference_run.worst
        self.reference_point = tuple(r.mean for r in worst.values.values())
        self.plan.strategy.worst = {name: r.mean for name, r in worst.values.items()}
        left = []
        for stored in self.database.trials():
            lost = redo and reading.trial_record(self.home, stored).damaged
            if stored.outcome is None or lost or self._lacks_trainings(stored.outcome):
                left.append(stored)
            else:
                self.results.remember(stored, stored.outcome)
                self.keeper.remember(stored.number)
        agenda = Agenda(
            self.plan,
            reference_run,
            self.home,
            self.database,
            self.results,
            self.num_trials,
            left,
            lambda number: self._say("propose", number),
        )
        self._search(agenda, reference_run)
        if agenda.ended != self.database.attribute("ended"):
            self.database.set_attribute("ended", agenda.ended)
        self.keeper.finish()
        self._say("finished", detail=agenda.ended or "")
        feasible.require_one(self.results.by_number())

    # --- before trial 0 -----------------------------------------------------------------------

    def _begin(self, plan: Plan) -> None:
        """Nothing told yet, by this plan."""
        self.recipe, self.plan = plan.recipe, plan
        self.results = Results(self.recipe.objectives, len(self.recipe.proxy.rungs))
        self.keeper = Keeper(self.home, self.recipe)

    def _extend(self, more: int) -> None:
        """Ask for more trials; those of an extension that was stopped come first.

        Whoever asks for more knows that the study has ended, by its time perhaps: from then on
        `max_hours` and `until_still` end it no more.
        """
        kept = self.database.trials()
        told = [each for each in kept if each.outcome is not None and not each.is_replicate]
        has_ended = self.database.attribute("ended") is not None
        if more and (has_ended or len(told) >= self.num_trials):
            self.num_trials = len(told) + more
            self.database.set_attribute("num_trials", self.num_trials)
            self.database.set_attribute("is_extended", True)
            self.database.set_attribute("ended", None)
        if self.database.attribute("is_extended"):
            self._begin(self.plan.without_early_end())

    def _deepen(self, seeds: int | None) -> None:
        """Ask for more trainings of each trial, those told among them."""
        now = int(self.database.attribute("seeds") or self.recipe.seeds)
        if seeds is not None and seeds < now:
            raise UserError(f"{self.home.path} has {now} trainings a trial already; ask for more")
        if seeds is not None and seeds > now:
            self.database.set_attribute("seeds", seeds)
        self._begin(self.plan.with_seeds(max(now, seeds or 0)))

    def _lacks_trainings(self, outcome: Outcome) -> bool:
        """Whether a trial was told that has fewer trainings at rung 0 than are asked for now."""
        name = TrialFolder.rung(0, self.recipe.seeds - 1 or None)
        trained = TrialFolder.rung(0) in outcome.files and bool(outcome.reached)
        return trained and name not in outcome.files

    def _prepare(self) -> None:
        try:
            environment = self.executor.evaluator.prepare()
        except UserError as error:
            raise self.recipe.error(str(error)) from error
        # For commands that take a trial later, on this machine: its text and its plug-ins.
        root = str(self.recipe.root.resolve())
        if self.database.attribute("recipe_folder") != root:
            self.database.set_attribute("recipe_folder", root)
        kept = self.database.attribute("environment")
        if kept is None:
            self.database.set_attribute("environment", environment)
        elif kept.get("corpus") != environment.get("corpus"):
            raise self.recipe.error(
                f"proxy.corpus: the text is not what the study in {self.home.path} began with, so "
                "scores would not compare; restore it, or give the recipe another name"
            )

    def _reference_run(self, setup_s: float) -> ReferenceRun:
        kept = self.database.attribute("reference_run")
        if kept is not None:
            return ReferenceRun.model_validate(kept)

        def announce(phase: Literal["tune", "reference"], detail: str) -> None:
            self._say(phase, -1 if phase == "reference" else None, detail=detail)

        for score, reason in too_short(self.plan).items():
            # Known by the recipe alone, so it is said before hours are spent on it.
            self._say("noted", detail=f"{score} does not count: {reason}")
        self.home.reference().write_spec(self.plan.reference.to_json())
        reference_run = establish(self.plan, self.workshop, self.home, self.key, announce)
        seconds = {**reference_run.seconds, "setup": setup_s, "search": self.meter.lap()}
        reference_run = reference_run.model_copy(update={"seconds": seconds})
        self.database.set_attribute("spent_s", self._spent_s())
        self.database.set_attribute("reference_run", reference_run.model_dump(mode="json"))
        return reference_run

    # --- trials -------------------------------------------------------------------------------

    def _search(self, agenda: Agenda, reference_run: ReferenceRun) -> None:
        """Trials until the agenda is empty, as many at once as the executor has slots."""
        context = trial.Context(
            self.plan,
            reference_run,
            self.workshop,
            self.home,
            self.key,
            lambda: [
                *reference_run.noise,
                *(told.result.readings for told in self.results.by_number()),
            ],
            self._announce,
        )
        self.began_s = self.meter.total()
        under_way: dict[int, Trial] = {}
        while True:
            while len(under_way) < self.executor.num_slots and not self.executor.deadline.is_near:
                pending = [each.stored for each in under_way.values()]
                due = agenda.next(pending, self._spent_s())
                if due is None:
                    break
                self._step(Trial(context, due.stored, due.rung), under_way, reference_run)
            if not under_way:
                if self.executor.deadline.is_near:
                    raise OutOfTimeError("the study is not at its end")
                return
            done = self.workshop.wait()
            self.database.set_attribute("spent_s", self._spent_s())
            now = under_way.pop(done.ticket)
            if isinstance(done.error, OutOfTimeError):
                # The trial stays as it is; the next run takes it up.
                continue
            now.take(done)
            self._step(now, under_way, reference_run)

    def _step(self, now: Trial, under_way: dict[int, Trial], reference_run: ReferenceRun) -> None:
        """Have a trial's next job done, or tell how it ended."""
        job = now.advance()
        if job is not None:
            under_way[self.workshop.submit(job)] = now
            return
        assert now.outcome is not None
        stored, result = now.stored, now.outcome
        before = self.results.told.get(stored.number)
        gain = self.results.gain(result, reference_run.worst) if before is None else None
        seconds = {**result.seconds, "search": self.meter.lap()}
        if before is not None:
            # It climbed: what it added to the front it had added at rung 0.
            gain = before.result.hypervolume_gain
            seconds["search"] += before.result.seconds["search"]
        result = result.model_copy(update={"hypervolume_gain": gain, "seconds": seconds})
        self.database.tell(stored.number, result)
        self.results.remember(stored, result)
        self.keeper.remember(stored.number)
        busy = {each.stored.number for each in under_way.values()}
        self.keeper.forget(self.results.at_rung, reference_run.noise, busy)
        self.num_told_here += before is None
        detail = feasible.in_words(result)
        self._say("told", stored.number, state=result.state, detail=detail, front=reference_run)

    def _spent_s(self) -> float:
        """Wall time of all runs of the study, less what a killed run did after its last job."""
        return self.spent_before + self.meter.total()

    # --- progress -----------------------------------------------------------------------------

    def _announce(self, stored: Stored, phase: Phase, rung: int | None) -> None:
        layout = " ".join(stored.candidate.spec.layout)
        self._say(phase, stored.number, rung=rung, detail=layout, why=so_far.why(stored.candidate))

    def _seconds_left(self, num_trials: int) -> float | None:
        """Of so many further trials, by what those of this run took, however many at once."""
        if not self.num_told_here:
            return None
        return num_trials * (self.meter.total() - self.began_s) / self.num_told_here

    def _say(
        self,
        phase: Phase,
        trial_number: int | None = None,
        *,
        rung: int | None = None,
        state: Any = None,
        detail: str = "",
        why: str = "",
        front: ReferenceRun | None = None,
    ) -> None:
        num_told, told = self.results.num_originals, self.results.by_number()
        self._latest = Event(
            phase=phase,
            trial=trial_number,
            num_told=num_told,
            num_trials=self.num_trials,
            front_size=len(self.results.front),
            hypervolume=self.results.hypervolume,
            reference_point=self.reference_point,
            seconds_left=self._seconds_left(max(0, self.num_trials - num_told)),
            detail=detail,
            state=state,
            rung=rung,
            why=why,
            typical_s=None if rung else so_far.typical_s(told, phase),
            bites=so_far.bites(told),
            front=nobody if front is None else partial(self._standings, front),
        )
        self.progress(self._latest)

    def _listener(self) -> Listener:
        """Tells that what was announced last waits for a device."""
        begun = self._latest
        return lambda words: self.progress(replace(begun, waits_for=words))

    def _standings(self, reference_run: ReferenceRun) -> tuple[Likely, ...]:
        return so_far.standings(self.results.by_number(), reference_run, self.recipe)
