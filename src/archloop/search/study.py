"""The study: ask, measure, reject or train, tell, until the recipe's number of trials is reached.

    >>> study = Study(recipe.load("recipes/quickstart.yaml"), Path("runs"))
    >>> record = study.run(print)  # doctest: +SKIP

It may be killed at any moment. A trial is one row of the database and a folder of stage files;
whatever was finished is found there by the next run, and all that is random comes from the recipe's
seed and the trial's number.
"""

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from archloop.errors import UserError
from archloop.ranking import front
from archloop.ranking.objectives import OBJECTIVES, as_point
from archloop.ranking.record import Objectives
from archloop.search import ending, plan, replication, telling, trial
from archloop.search.base import SpaceExhaustedError
from archloop.search.errors import DiskFullError, NoFeasibleTrial, StudyError
from archloop.search.establish import establish
from archloop.search.evaluator import Evaluator
from archloop.search.meter import Clock, Meter
from archloop.search.plan import Plan
from archloop.search.recipe import recipe
from archloop.search.recipe.recipe import Recipe
from archloop.search.rungs import Standings
from archloop.search.workshop import Workshop
from archloop.space.features import summary
from archloop.space.genome import Genome
from archloop.store import reading
from archloop.store.baseline import Baseline
from archloop.store.connection import cause
from archloop.store.database import Database, Stored
from archloop.store.folder import DATABASE, StudyFolder
from archloop.store.identity import Card
from archloop.store.lock import StudyBusyError
from archloop.store.opening import opened
from archloop.store.progress import Event, Progress, Stage, ignore
from archloop.store.record import Outcome, StudyRecord


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

    def run(self, progress: Progress | None = None, *, redo: bool = False) -> StudyRecord:
        """Create or resume the study and run what is left of it.

        Args:
            progress: called with each `Event`.
            redo: also do the stages of finished trials whose files are lost once more.

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
        with _full_disk_in_one_line(self.folder), ExitStack() as stack:
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
            _Run(self, resolved, database, evaluator, meter, progress or ignore).run(redo)
        return self.read()

    def read(self) -> StudyRecord:
        """What the study has so far, from its store alone."""
        return reading.read(self.folder, self.recipe.storage)

    def _hardware(self) -> Evaluator:
        from archloop.search.hardware import HardwareEvaluator

        return HardwareEvaluator(self.recipe, StudyFolder(self.folder).artifacts)


class _Run:
    """One process's work on a study, from opening the store to the last trial."""

    def __init__(
        self,
        study: Study,
        plan_: Plan,
        database: Database,
        evaluator: Evaluator,
        meter: Meter,
        progress: Progress,
    ) -> None:
        self.recipe, self.plan = study.recipe, plan_
        self.home = StudyFolder(study.folder)
        self.database, self.evaluator = database, evaluator
        self.meter, self.progress = meter, progress
        self.key = study.recipe.digest[:16]
        self.finished: list[telling.Finished] = []
        self.results: list[Outcome] = []
        self.at_rung = [Standings() for _ in study.recipe.proxy.rungs]
        self.seconds_told = 0.0
        self.front = np.empty((0, 3))
        self.hypervolume = 0.0
        self.reference_point: tuple[float, ...] | None = None

    def run(self, redo: bool) -> None:
        """All that is left to do."""
        self._say("setup")
        with self.meter.stage():
            self._prepare()
        setup_s = self.meter.last
        baseline = self._baseline(setup_s)
        worst = baseline.worst
        self.reference_point = tuple(r.mean for r in worst.values.values())
        self.plan.strategy.worst = {name: r.mean for name, r in worst.values.items()}
        running = []
        for stored in self.database.trials():
            lost = redo and reading.trial_record(self.home, stored).damaged
            if stored.outcome is None or lost:
                running.append(stored)
            else:
                self._remember(stored, stored.outcome, baseline)
        number = len(self.results) + len(running)
        for stored in running:
            self._finish(stored, baseline)
        ended = None
        while number < self.recipe.num_trials:
            ended = ending.reason(self.recipe, self.finished, baseline)
            if ended is not None:
                break
            try:
                stored = self._ask(number, baseline)
            except SpaceExhaustedError as error:
                ended = str(error)
                break
            self._finish(stored, baseline)
            number += 1
        while (of := replication.due(self.finished, baseline, self.recipe.replicates)) is not None:
            self._finish(self._replicate(number, of), baseline)
            number += 1
        if ended != self.database.attribute("ended"):
            self.database.set_attribute("ended", ended)
        self._say("finished", detail=ended or "")
        self._require_feasible()

    # --- before trial 0 -----------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            environment = self.evaluator.prepare()
        except UserError as error:
            raise self.recipe.error(f"proxy.corpus: {error}") from error
        kept = self.database.attribute("environment")
        if kept is None:
            self.database.set_attribute("environment", environment)
        elif kept.get("corpus") != environment.get("corpus"):
            raise self.recipe.error(
                f"proxy.corpus: the text is not what the study in {self.home.path} began with, so "
                "scores would not compare; restore it, or give the recipe another name"
            )

    def _baseline(self, setup_s: float) -> Baseline:
        kept = self.database.attribute("baseline")
        if kept is not None:
            return Baseline.model_validate(kept)

        def announce(stage: Literal["tune", "reference"], detail: str) -> None:
            self._say(stage, -1 if stage == "reference" else None, detail=detail)

        workshop = Workshop(self.evaluator, self.meter)
        baseline = establish(self.plan, workshop, self.home, self.key, announce)
        seconds = {**baseline.seconds, "setup": setup_s, "search": self.meter.lap()}
        baseline = baseline.model_copy(update={"seconds": seconds})
        self.database.set_attribute("baseline", baseline.model_dump(mode="json"))
        return baseline

    # --- trials -------------------------------------------------------------------------------

    def _ask(self, number: int, baseline: Baseline) -> Stored:
        self._say("propose", trial_number=number)
        contexts = {name: target.contexts for name, target in self.recipe.targets.items()}
        limits = telling.limits(self.recipe.budgets, contexts)
        told = telling.tell(self.finished, baseline.noise, limits)
        proposal = self.plan.strategy.ask(number, self.recipe.seed, told)
        candidate = self.plan.candidate(proposal)
        stored = Stored(number=number, candidate=candidate, costs=self.plan.costs(candidate.spec))
        most = max(self.recipe.space.num_blocks)
        counts = {k: (v, most) for k, v in summary(self.plan.space, proposal.genome).items()}
        self.database.create(stored, counts)
        return stored

    def _replicate(self, number: int, of: int) -> Stored:
        """The same candidate once more, under a number of its own and hence with other seeds."""
        original = next(trial for trial in self.finished if trial.stored.number == of)
        update = {"origin": "replicate", "parents": (of,), "replicates": of}
        candidate = original.stored.candidate.model_copy(update=update)
        stored = Stored(number=number, candidate=candidate, costs=original.stored.costs)
        most = max(self.recipe.space.num_blocks)
        counts = {k: (v, most) for k, v in summary(self.plan.space, original.genome).items()}
        self.database.create(stored, counts)
        return stored

    def _finish(self, stored: Stored, baseline: Baseline) -> None:
        def announce(stage: Stage, rung: int | None) -> None:
            layout = " ".join(stored.candidate.spec.layout)
            self._say(stage, stored.number, rung=rung, detail=layout)

        context = trial.Context(
            self.plan,
            baseline,
            Workshop(self.evaluator, self.meter),
            self.home,
            self.key,
            self.at_rung,
            [*baseline.noise, *(result.readings for result in self.results)],
            announce,
        )
        result = trial.run(context, stored)
        gain = self._gain(result, baseline)
        seconds = {**result.seconds, "search": self.meter.lap()}
        result = result.model_copy(update={"hypervolume_gain": gain, "seconds": seconds})
        self.database.tell(stored.number, result)
        self._remember(stored, result, baseline)
        self._say("told", stored.number, state=result.state, detail=_outcome(result))

    def _gain(self, result: Outcome, baseline: Baseline) -> float | None:
        if result.state != "complete":
            return None
        points = np.vstack([self.front, as_point(result.by_rung[0])])
        volume = front.hypervolume(points, as_point(baseline.worst))
        return max(0.0, volume - self.hypervolume)

    def _remember(self, stored: Stored, result: Outcome, baseline: Baseline) -> None:
        """Take a told trial into memory: history, rungs, front."""
        self.results.append(result)
        genome = Genome.model_validate(stored.candidate.genome)
        self.finished.append(telling.Finished(stored, genome, result))
        if result.state == "complete":
            first = result.by_rung[0]
            if result.scored:
                points = np.vstack([self.front, as_point(first)])
                self.front = points[front.nondominated(points)]
            self.hypervolume += result.hypervolume_gain or 0.0
        for rung, objectives in enumerate(result.by_rung):
            self.at_rung[rung].add(objectives)
        self.seconds_told += sum(result.seconds.values())

    def _require_feasible(self) -> None:
        if any(result.scored for result in self.results):
            return
        if any(result.diverged for result in self.results):
            raise NoFeasibleTrial(
                "every trial that kept the budgets diverged in training; lower "
                "proxy.training.learning_rate"
            )
        rejected = [trial for trial in self.finished if trial.result.excess > 0]
        if not rejected:
            error = self.results[0].error if self.results else "no trial was run"
            unsupported = all(result.state == "unsupported" for result in self.results)
            what = "no required target can run any trial" if unsupported else "every trial failed"
            raise NoFeasibleTrial(f"no feasible trial; {what}, the first with: {error}")
        nearest = min(rejected, key=lambda trial: (trial.result.excess, trial.stored.number))
        raise NoFeasibleTrial(
            f"no feasible trial; nearest was trial {nearest.stored.number} "
            f"({' '.join(nearest.genome.layout)}): {_outcome(nearest.result)}"
        )

    def _say(
        self,
        stage: Stage,
        trial_number: int | None = None,
        *,
        rung: int | None = None,
        state: Any = None,
        detail: str = "",
    ) -> None:
        num_told = len(self.results)
        remaining = max(0, self.recipe.num_trials - num_told)
        self.progress(
            Event(
                stage=stage,
                trial=trial_number,
                num_told=num_told,
                num_trials=self.recipe.num_trials,
                front_size=len(self.front),
                hypervolume=self.hypervolume,
                reference_point=self.reference_point,
                seconds_left=remaining * self.seconds_told / num_told if num_told else None,
                detail=detail,
                state=state,
                rung=rung,
            )
        )


def _outcome(result: Outcome) -> str:
    """How a trial ended, in a few words."""
    if result.broken:
        worst = max(result.broken, key=lambda budget: budget.value / budget.limit)
        unit = " x reference" if worst.relative else ""
        return (
            f"{worst.metric} at {worst.context} on {worst.target} {worst.value:.3g}{unit}, "
            f"budget {worst.limit:g}{unit}"
        )
    if result.error is not None and not result.by_rung:
        return result.error
    first, names = result.by_rung[0], [objective.name for objective in OBJECTIVES]
    if not result.scored:
        return f"training diverged, {_values(first, names[1:])}"
    return _values(first, names)


def _values(found: Objectives, names: Sequence[str]) -> str:
    """Means of objectives in words."""
    return ", ".join(f"{name} {found.mean(name):.3g}" for name in names)


@contextmanager
def _full_disk_in_one_line(folder: Path) -> Iterator[None]:
    """A disk that fills ends the run with what to do, and nothing finished is lost."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(error.filename or folder) from error
        if error.errno is None:
            raise
        where = error.filename or folder
        raise StudyError(f"{where}: {error.strerror}; mend it and run the same command") from error
    except (StorageInternalError, SQLAlchemyError) as error:
        what = cause(error)
        if "disk is full" in what:
            raise _disk_full(folder / DATABASE) from error
        raise StudyError(
            f"{folder}: the database failed: {what}; if it stays so, restore it from a copy"
        ) from error


def _disk_full(where: str | Path) -> DiskFullError:
    return DiskFullError(
        f"{where}: no space left on device; free some and run the same command: it goes on where "
        "it stopped"
    )
