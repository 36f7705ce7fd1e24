"""The study: ask, measure, reject or train, tell, until the recipe's number of trials is reached.

    >>> study = Study(recipe.load("recipes/quickstart.yaml"), Path("runs"))
    >>> record = study.run(print)  # doctest: +SKIP

It may be killed at any moment. A trial is one row of the database and a folder of stage files;
whatever was finished is found there by the next run, and all that is random comes from the recipe's
seed and the trial's number.
"""

import time
from collections import deque
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from archloop.errors import UserError
from archloop.ranking import front
from archloop.ranking.objectives import as_point
from archloop.search import ending, faults, feasible, plan, replication, rungs, telling, trial
from archloop.search.base import Pending, SpaceExhaustedError
from archloop.search.establish import establish
from archloop.search.evaluator import Evaluator
from archloop.search.executors.base import Executor
from archloop.search.executors.local import Local
from archloop.search.executors.places import num_jobs
from archloop.search.executors.ray import OnRay, on_ray
from archloop.search.executors.serial import Serial
from archloop.search.keeping import Keeper
from archloop.search.meter import Clock, Meter
from archloop.search.plan import Plan
from archloop.search.recipe import recipe
from archloop.search.recipe.recipe import Recipe
from archloop.search.rungs import Standings
from archloop.search.trial import Trial
from archloop.search.workshop import Workshop
from archloop.space.features import summary
from archloop.space.genome import Genome
from archloop.store import reading
from archloop.store.database import Database, Stored
from archloop.store.folder import StudyFolder
from archloop.store.identity import Card
from archloop.store.lock import StudyBusyError
from archloop.store.opening import opened
from archloop.store.progress import Event, Progress, Stage, ignore
from archloop.store.record import Outcome, StudyRecord
from archloop.store.reference_run import ReferenceRun


class Study:
    """A study in ``<runs>/<recipe name>/``.

    Args:
        recipe: a recipe, or the path of one.
        runs: folder of studies; made if missing.
        evaluator: who measures and trains; by default what the recipe says, on real devices.
        clock: for the time by stage.

    Raises:
        RecipeError: the recipe is wrong.
    """

    def __init__(
        self,
        recipe_: Recipe | str | Path,
        runs: str | Path = "runs",
        *,
        evaluator: Evaluator | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.recipe = recipe_ if isinstance(recipe_, Recipe) else recipe.load(recipe_)
        self.folder = Path(runs) / self.recipe.name
        self._evaluator = evaluator
        self._clock = clock

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        evaluator: Evaluator | None = None,
        clock: Clock = time.monotonic,
    ) -> "Study":
        """A study that exists, by its folder alone, wherever that is and whatever it is called.

        Args:
            folder: of the study.
            evaluator: as of `Study`.
            clock: likewise.

        Raises:
            UserError: there is no study, or its recipe is damaged.
        """
        about = reading.about(folder)
        found = recipe.kept(StudyFolder(folder).recipe_copy, about.recipe_folder)
        study = cls(found, Path(folder).parent, evaluator=evaluator, clock=clock)
        study.folder = Path(folder)
        return study

    def run(
        self, progress: Progress | None = None, *, redo: bool = False, more: int = 0
    ) -> StudyRecord:
        """Create or resume the study and run what is left of it.

        Args:
            progress: called with each `Event`.
            redo: also do the stages of finished trials whose files are lost once more.
            more: trials beyond those asked for so far; where some of these are still to do, they
                are done instead, so that an extension that was stopped goes on.

        Raises:
            RecipeError: the recipe is wrong, or is not the one that this study began with.
            StudyBusyError: another process runs it.
            NoFeasibleTrial: all trials are told and none kept the budgets.
            DiskFullError: no space is left.
            StudyError: it cannot go on; after the cause is gone the same call does.
            KeyboardInterrupt: it was stopped; the same call goes on.
        """
        meter = Meter(self._clock)
        home = StudyFolder(self.folder)
        with faults.in_one_line(self.folder), ExitStack() as stack:
            resolved = plan.resolve(self.recipe)
            card = Card.new(self.recipe.plain(), self.recipe.digest)
            try:
                database = stack.enter_context(
                    opened(home, card, self.recipe.source, self.recipe.storage)
                )
            except StudyBusyError:
                raise
            except UserError as error:
                raise self.recipe.error(str(error)) from error
            evaluator = stack.enter_context(closing(self._evaluator or self._hardware()))
            executor = stack.enter_context(closing(self._executor(evaluator)))
            _Run(self, resolved, database, executor, meter, progress or ignore).run(redo, more)
        return self.read()

    def read(self) -> StudyRecord:
        """What the study has so far, from its store alone."""
        return reading.read(self.folder, self.recipe.storage)

    def _executor(self, evaluator: Evaluator) -> Executor:
        if isinstance(evaluator, OnRay):
            jobs = self.recipe.executor.workers or evaluator.num_jobs
        else:
            jobs = num_jobs(self.recipe)
        if jobs == 1:
            return Serial(evaluator, self._clock)
        return Local(evaluator, self._clock, jobs)

    def _hardware(self) -> Evaluator:
        if self.recipe.executor.name == "ray":
            return on_ray(self.recipe)
        from archloop.search.hardware import HardwareEvaluator

        return HardwareEvaluator(self.recipe, StudyFolder(self.folder).artifacts)


class _Run:
    """One process's work on a study, from opening the store to the last trial."""

    def __init__(
        self,
        study: Study,
        plan_: Plan,
        database: Database,
        executor: Executor,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self.recipe, self.plan = study.recipe, plan_
        self.home = StudyFolder(study.folder)
        self.database, self.executor = database, executor
        self.meter, self.progress = meter, progress
        self.workshop = Workshop(executor, meter)
        self.key = study.recipe.digest[:16]
        self.told: dict[int, telling.Finished] = {}
        self.at_rung = [Standings() for _ in study.recipe.proxy.rungs]
        self.ended: str | None = None
        # Wall time: of the runs before this one, of this one up to its first trial; trials told.
        self.spent_before = float(database.attribute("spent_s") or 0.0)
        self.began_s, self.num_told_here = 0.0, 0
        self.num_trials = int(database.attribute("num_trials") or self.recipe.num_trials)
        self.keeper = Keeper(self.home, self.recipe)
        self.front = np.empty((0, len(self.recipe.objectives)))
        self.hypervolume = 0.0
        self.reference_point: tuple[float, ...] | None = None

    def run(self, redo: bool, more: int) -> None:
        """All that is left to do, and more trials."""
        self._extend(more)
        self._say("setup")
        with self.meter.stage():
            self._prepare()
        setup_s = self.meter.last
        reference_run = self._reference_run(setup_s)
        worst = reference_run.worst
        self.reference_point = tuple(r.mean for r in worst.values.values())
        self.plan.strategy.worst = {name: r.mean for name, r in worst.values.items()}
        left = []
        for stored in self.database.trials():
            lost = redo and reading.trial_record(self.home, stored).damaged
            if stored.outcome is None or lost:
                left.append(stored)
            else:
                self._remember(stored, stored.outcome)
        self._search(reference_run, left)
        if self.ended != self.database.attribute("ended"):
            self.database.set_attribute("ended", self.ended)
        self.keeper.finish()
        self._say("finished", detail=self.ended or "")
        feasible.require_one(self.by_number())

    # --- before trial 0 -----------------------------------------------------------------------

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

        def announce(stage: Literal["tune", "reference"], detail: str) -> None:
            self._say(stage, -1 if stage == "reference" else None, detail=detail)

        self.home.reference().write_spec(self.plan.reference.to_json())
        reference_run = establish(self.plan, self.workshop, self.home, self.key, announce)
        seconds = {**reference_run.seconds, "setup": setup_s, "search": self.meter.lap()}
        reference_run = reference_run.model_copy(update={"seconds": seconds})
        self.database.set_attribute("spent_s", self._spent_s())
        self.database.set_attribute("reference_run", reference_run.model_dump(mode="json"))
        return reference_run

    # --- trials -------------------------------------------------------------------------------

    def _search(self, reference_run: ReferenceRun, left: list[Stored]) -> None:
        """Trials until there are enough, as many at once as the executor has slots.

        Args:
            reference_run: what was fixed before trial 0.
            left: trials that a run before this one began.
        """
        context = trial.Context(
            self.plan,
            reference_run,
            self.workshop,
            self.home,
            self.key,
            lambda: [*reference_run.noise, *(trial.result.readings for trial in self.by_number())],
            self._announce,
        )
        self.began_s = self.meter.total()
        waiting = deque(Trial(context, stored, self._height(stored)) for stored in left)
        number = len(self.told) + len(left)
        under_way: dict[int, Trial] = {}
        while True:
            while len(under_way) < self.executor.num_slots:
                if not waiting:
                    pending = [each.stored for each in under_way.values()]
                    climb = self._climb(number, reference_run, pending)
                    if climb is not None:
                        stored = self.told[climb.number].stored
                        waiting.append(Trial(context, stored, climb.rung))
                        continue
                    following = self._next(number, reference_run, pending)
                    if following is None:
                        break
                    waiting.append(Trial(context, following, self._height(following)))
                    number += 1
                self._step(waiting.popleft(), under_way, reference_run)
            if under_way:
                done = self.workshop.wait()
                self.database.set_attribute("spent_s", self._spent_s())
                now = under_way.pop(done.ticket)
                now.take(done)
                self._step(now, under_way, reference_run)
            elif not waiting:
                return

    def _height(self, stored: Stored) -> int:
        """The rung that a trial is trained to: as before, or like the trial that it repeats."""
        outcome, repeated = stored.outcome, stored.candidate.replicates
        if outcome is None and repeated is not None:
            outcome = self.told[repeated].result
        return 0 if outcome is None else max(0, len(outcome.by_rung) - 1)

    def _climb(
        self, number: int, reference_run: ReferenceRun, pending: list[Stored]
    ) -> rungs.Climb | None:
        """The told trial that is to be trained longer; none any more when the study is to end."""
        told = self.by_number()
        if self.ended is None and self._is_short(number, pending):
            self.ended = ending.reason(self.recipe, told, reference_run, self._spent_s())
        if self.ended is not None:
            return None
        return rungs.due(
            told,
            [each.number for each in pending],
            reference_run.noise,
            reference_run.worst,
            len(self.recipe.proxy.rungs),
            self.recipe.promote_share,
            self.recipe.objectives,
            self.recipe.seed,
        )

    def _next(
        self, number: int, reference_run: ReferenceRun, pending: list[Stored]
    ) -> Stored | None:
        """A new trial, then replicates of what would be claimed; None if none can begin now."""
        told = self.by_number()
        if self.ended is None and self._is_short(number, pending):
            try:
                return self._ask(number, reference_run, pending)
            except SpaceExhaustedError as error:
                self.ended = str(error)
        if any(each.candidate.replicates is None for each in pending):
            # Which trials are claimed, and so replicated, depends on the results of all replicates
            # under way.
            return None
        begun = [telling.Finished(each, None, Outcome(state="running")) for each in pending]
        of = replication.due([*told, *begun], reference_run, self.recipe)
        return None if of is None else self._replicate(number, self.told[of])

    def _replicate(self, number: int, original: telling.Finished) -> Stored:
        """The same candidate once more, under a number of its own and hence with other seeds."""
        of, costs = original.stored.number, original.stored.costs
        update = {"origin": "replicate", "parents": (of,), "replicates": of}
        candidate = original.stored.candidate.model_copy(update=update)
        told = tuple(sorted(self.told))
        stored = Stored(number=number, candidate=candidate, costs=costs, told=told)
        self._create(stored, original.genome)
        return stored

    def _create(self, stored: Stored, genome: Genome | None) -> None:
        """Begin a trial, with its spec beside its files."""
        self.home.trial(stored.number).write_spec(stored.candidate.spec.to_json())
        self.database.create(stored, self._summary(genome))

    def _summary(self, genome: Genome | None) -> dict[str, tuple[int, int]]:
        """What Optuna's tools can relate to results: counts in a genome, each with its largest."""
        if genome is None:
            return {}
        most = max(self.recipe.space.num_blocks)
        return {name: (count, most) for name, count in summary(self.plan.space, genome).items()}

    def _step(self, now: Trial, under_way: dict[int, Trial], reference_run: ReferenceRun) -> None:
        """Have a trial's next job done, or tell how it ended."""
        job = now.advance()
        if job is not None:
            under_way[self.workshop.submit(job)] = now
            return
        assert now.outcome is not None
        stored, result = now.stored, now.outcome
        before = self.told.get(stored.number)
        gain = self._gain(result, reference_run) if before is None else None
        seconds = {**result.seconds, "search": self.meter.lap()}
        if before is not None:
            # It climbed: what it added to the front it had added at rung 0.
            gain = before.result.hypervolume_gain
            seconds["search"] += before.result.seconds["search"]
        result = result.model_copy(update={"hypervolume_gain": gain, "seconds": seconds})
        self.database.tell(stored.number, result)
        self._remember(stored, result)
        self.keeper.forget(self.at_rung)
        self.num_told_here += before is None
        self._say("told", stored.number, state=result.state, detail=feasible.in_words(result))

    def _ask(self, number: int, reference_run: ReferenceRun, pending: list[Stored]) -> Stored:
        """A new trial: the next of the recipe's own specs, or what the strategy proposes."""
        self._say("propose", trial_number=number)
        told = tuple(sorted(self.told))
        given = self.plan.given
        if number < len(given):
            candidate, genome = given[number], None
        else:
            contexts = {name: target.contexts for name, target in self.recipe.targets.items()}
            limits = telling.limits(self.recipe.budgets, contexts)
            known = [each for each in self.by_number() if each.genome is not None]
            proposal = telling.ask(
                self.plan.strategy,
                number,
                self.recipe.seed,
                telling.tell(known, reference_run.noise, limits),
                [
                    Pending(each.number, found, each.candidate.replicates)
                    for each in pending
                    if each.number not in self.told and (found := _genome(each)) is not None
                ],
                len(given),
            )
            candidate, genome = self.plan.candidate(proposal), proposal.genome
        costs = self.plan.costs(candidate.spec)
        stored = Stored(number=number, candidate=candidate, costs=costs, told=told)
        self._create(stored, genome)
        return stored

    def _announce(self, stored: Stored, stage: Stage, rung: int | None) -> None:
        layout = " ".join(stored.candidate.spec.layout)
        self._say(stage, stored.number, rung=rung, detail=layout)

    def by_number(self) -> list[telling.Finished]:
        """The trials told, by number, whatever the order in which they ended."""
        return [self.told[number] for number in sorted(self.told)]

    def _gain(self, result: Outcome, reference_run: ReferenceRun) -> float | None:
        if result.state != "complete":
            return None
        points = np.vstack([self.front, as_point(result.by_rung[0], self.recipe.objectives)])
        volume = front.hypervolume(points, as_point(reference_run.worst, self.recipe.objectives))
        return max(0.0, volume - self.hypervolume)

    def _remember(self, stored: Stored, result: Outcome) -> None:
        """Take a told trial into memory: history, rungs, front."""
        known = self.told.get(stored.number)
        genome = _genome(stored) if known is None else known.genome
        self.told[stored.number] = telling.Finished(stored, genome, result)
        self.keeper.remember(stored.number)
        if result.state == "complete" and known is None:
            first = result.by_rung[0]
            if result.scored:
                points = np.vstack([self.front, as_point(first, self.recipe.objectives)])
                self.front = points[front.nondominated(points)]
            self.hypervolume += result.hypervolume_gain or 0.0
        for rung, objectives in enumerate(result.by_rung):
            self.at_rung[rung].add(stored.number, objectives)

    def _spent_s(self) -> float:
        """Wall time of all runs of the study, less what a killed run did after its last job."""
        return self.spent_before + self.meter.total()

    def _is_short(self, number: int, pending: list[Stored]) -> bool:
        """Whether there are fewer trials than asked for, of the first `number`, less replicates."""
        begun = [*(each.stored for each in self.told.values()), *pending]
        return number - sum(each.is_replicate for each in begun) < self.num_trials

    def _extend(self, more: int) -> None:
        """Ask for more trials; those of an extension that was stopped come first."""
        kept = self.database.trials()
        told = [each for each in kept if each.outcome is not None and not each.is_replicate]
        if more and len(told) >= self.num_trials:
            self.num_trials += more
            self.database.set_attribute("num_trials", self.num_trials)

    def _seconds_left(self, num_trials: int) -> float | None:
        """Of so many further trials, by what those of this run took, however many at once."""
        if not self.num_told_here:
            return None
        return num_trials * (self.meter.total() - self.began_s) / self.num_told_here

    def _say(
        self,
        stage: Stage,
        trial_number: int | None = None,
        *,
        rung: int | None = None,
        state: Any = None,
        detail: str = "",
    ) -> None:
        num_told = sum(each.stored.candidate.replicates is None for each in self.told.values())
        remaining = max(0, self.num_trials - num_told)
        self.progress(
            Event(
                stage=stage,
                trial=trial_number,
                num_told=num_told,
                num_trials=self.num_trials,
                front_size=len(self.front),
                hypervolume=self.hypervolume,
                reference_point=self.reference_point,
                seconds_left=self._seconds_left(remaining),
                detail=detail,
                state=state,
                rung=rung,
            )
        )


def _genome(stored: Stored) -> Genome | None:
    genome = stored.candidate.genome
    return None if genome is None else Genome.model_validate(genome)
