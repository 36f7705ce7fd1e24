"""The study: ask, measure, reject or train, tell, until the recipe's number of trials is reached.

    >>> study = Study(recipe.load("recipes/quickstart.yaml"), Path("runs"))
    >>> record = study.run(print)  # doctest: +SKIP

It may be killed at any moment. A trial is one row of the database and a folder of stage files;
whatever was finished is found there by the next run, and all that is random comes from the recipe's
seed and the trial's number.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from archloop.errors import UserError
from archloop.findings.findings import Shown
from archloop.search import faults, plan
from archloop.search.deadline import Deadline
from archloop.search.evaluator import Evaluator
from archloop.search.executors.base import Executor
from archloop.search.executors.local import Local
from archloop.search.executors.places import num_jobs
from archloop.search.executors.ray import OnRay, on_ray
from archloop.search.executors.serial import Serial
from archloop.search.loop import Loop
from archloop.search.meter import Clock, Meter
from archloop.search.recipe import recipe
from archloop.search.recipe.recipe import Recipe
from archloop.store import reading
from archloop.store.folder import StudyFolder
from archloop.store.identity import Card
from archloop.store.lock import StudyBusyError
from archloop.store.opening import opened
from archloop.store.progress import Progress, ignore
from archloop.store.record import StudyRecord


class Study(Shown):
    """A study in ``<runs>/<recipe name>/``.

    Args:
        recipe: a recipe, the path of one, or a recipe's keys as a dict.
        runs: folder of studies; made if missing.
        evaluator: who measures and trains; by default what the recipe says, on real devices.
        clock: for the time by phase.

    Raises:
        RecipeError: the recipe is wrong.
    """

    def __init__(
        self,
        recipe_: Recipe | Mapping[str, Any] | str | Path,
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
        self,
        progress: Progress | None = None,
        *,
        redo: bool = False,
        more: int = 0,
        seeds: int | None = None,
        minutes: float | None = None,
    ) -> StudyRecord:
        """Create or resume the study and run what is left of it.

        Args:
            progress: called with each `Event`.
            redo: also do the stages of finished trials whose files are lost once more.
            more: trials beyond those asked for so far; where some of these are still to do, they
                are done instead, so that an extension that was stopped goes on.
            seeds: trainings of each trial at rung 0, from now on and of those told already; None
                for as many as so far. Nothing is measured again for it.
            minutes: that this run may take: nothing begins that would not end by then, by the
                median of the latest of its like, and what still runs then is given up.

        Raises:
            OutOfTimeError: `minutes` are over and something is left; the same call goes on.
            RecipeError: the recipe is wrong, or is not the one that this study began with.
            StudyBusyError: another process runs it.
            UserError: the study has more trainings a trial already than `seeds`.
            NoFeasibleTrial: all trials are told and none kept the budgets.
            DiskFullError: no space is left.
            StudyError: it cannot go on; after the cause is gone the same call does.
            KeyboardInterrupt: it was stopped; the same call goes on.
        """
        meter = Meter(self._clock)
        deadline = Deadline(self._clock, None if minutes is None else 60 * minutes)
        home = StudyFolder(self.folder)
        with faults.in_one_line(self.folder), ExitStack() as stack:
            resolved = plan.resolve(self.recipe)
            try:
                card = self._card(home)
                database = stack.enter_context(
                    opened(home, card, self.recipe.source, self.recipe.storage)
                )
            except StudyBusyError:
                raise
            except UserError as error:
                raise self.recipe.error(str(error)) from error
            evaluator = stack.enter_context(closing(self._evaluator or self._hardware()))
            executor = stack.enter_context(closing(self._executor(evaluator)))
            executor.deadline = stack.enter_context(closing(deadline))
            loop = Loop(resolved, home, database, executor, meter, progress or ignore)
            loop.run(redo, more, seeds)
        return self.read()

    def read(self) -> StudyRecord:
        """What the study has so far, from its store alone."""
        return reading.read(self.folder, self.recipe.storage)

    def _card(self, home: StudyFolder) -> Card:
        """Which study the recipe is; the one in the folder, where only newer keys tell them apart.

        Raises:
            UserError: the folder's card is damaged, or of another schema.
        """
        kept = home.read_card()
        if kept is None:
            return Card.new(self.recipe.plain(), self.recipe.digest)
        if self.recipe.digest_beside(kept.settings) == kept.digest:
            return kept
        # Another study, by a key that both know or that the recipe names.
        return Card.new(self.recipe.plain_beside(kept.settings), self.recipe.digest)

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
