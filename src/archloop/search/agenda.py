"""What a study does next: trains a told trial longer, begins a new one, or repeats one.

1. A told trial that has a place at a higher rung climbs (`rungs.due`).
2. While trials are wanted, a new one begins: the next of the recipe's own specs, then what the
   strategy proposes.
3. Once no more are wanted and all have ended, what would be claimed is repeated, in fresh processes
   and with fresh seeds (`replication.due`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from archloop.search import ending, replication, rungs, telling
from archloop.search.base import Pending, SpaceExhaustedError
from archloop.search.plan import Plan
from archloop.search.results import Results, genome_of
from archloop.space.features import summary
from archloop.space.genome import Genome
from archloop.store.database import Database, Stored
from archloop.store.folder import StudyFolder
from archloop.store.record import Outcome
from archloop.store.reference_run import ReferenceRun


class Due(NamedTuple):
    """A trial to work on, and the rung that it is to be trained to."""

    stored: Stored
    rung: int


class Agenda:
    """Decides what comes next, and writes each new trial to the store before it begins.

    Args:
        plan: of the study.
        reference_run: what was fixed before trial 0.
        home: the study's folder.
        database: its rows.
        results: its told trials.
        num_trials: wanted, replicates aside.
        begun: trials that a run before this one began and that are not told, or of which something
            is to be done once more.
        announce: called with the number of each trial that is asked for.

    Attributes:
        ended: why no further trial begins, once that is so before there are `num_trials`.
    """

    def __init__(
        self,
        plan: Plan,
        reference_run: ReferenceRun,
        home: StudyFolder,
        database: Database,
        results: Results,
        num_trials: int,
        begun: Sequence[Stored],
        announce: Callable[[int], None],
    ) -> None:
        self.ended: str | None = None
        self._plan, self._recipe, self._reference_run = plan, plan.recipe, reference_run
        self._home, self._database, self._results = home, database, results
        self._num_trials, self._announce = num_trials, announce
        self._begun = {stored.number: stored.outcome for stored in begun}
        self._unfinished = [Due(stored, self._rung(stored)) for stored in begun]
        self._number = len(results.told.keys() | {stored.number for stored in begun})

    def next(self, pending: Sequence[Stored], spent_s: float) -> Due | None:
        """What is to be worked on beside the pending trials; None if nothing can begin now.

        Args:
            pending: trials under way.
            spent_s: wall time of all runs of the study so far.
        """
        if self._unfinished:
            return self._unfinished.pop(0)
        due = self._climb(pending, spent_s)
        if due is not None:
            return due
        stored = self._new(pending)
        if stored is None:
            return None
        self._number += 1
        return Due(stored, self._rung(stored))

    def _rung(self, stored: Stored) -> int:
        """The rung that a trial is trained to: as before, or like the trial that it repeats."""
        outcome, repeated = stored.outcome, stored.candidate.replicates
        if outcome is None and repeated is not None:
            # The trial that it repeats may itself have something to be done once more.
            told = self._results.told.get(repeated)
            outcome = self._begun.get(repeated) if told is None else told.result
        return 0 if outcome is None else max(0, len(outcome.by_rung) - 1)

    def _climb(self, pending: Sequence[Stored], spent_s: float) -> Due | None:
        """The told trial that is to be trained longer; none any more when the study is to end."""
        told = self._results.by_number()
        if self.ended is None and self._is_short(pending):
            self.ended = ending.reason(self._recipe, told, self._reference_run, spent_s)
        if self.ended is not None:
            return None
        climb = rungs.due(
            told,
            [each.number for each in pending],
            self._reference_run.noise,
            self._reference_run.worst,
            len(self._recipe.proxy.rungs),
            self._recipe.promote_share,
            self._recipe.objectives,
            self._recipe.seed,
        )
        return None if climb is None else Due(self._results.told[climb.number].stored, climb.rung)

    def _new(self, pending: Sequence[Stored]) -> Stored | None:
        """A new trial, then replicates of what would be claimed; None if none can begin now."""
        if self.ended is None and self._is_short(pending):
            try:
                return self._ask(pending)
            except SpaceExhaustedError as error:
                self.ended = str(error)
        if any(not each.is_replicate for each in pending):
            # Which trials are claimed, and so replicated, depends on the results of all trials
            # under way.
            return None
        begun = [telling.Finished(each, None, Outcome(state="running")) for each in pending]
        told = self._results.by_number()
        of = replication.due([*told, *begun], self._reference_run, self._recipe)
        return None if of is None else self._replicate(self._results.told[of])

    def _is_short(self, pending: Sequence[Stored]) -> bool:
        """Whether fewer trials have begun than are asked for, replicates aside."""
        return self._num_originals(pending) < self._num_trials

    def _num_originals(self, pending: Sequence[Stored]) -> int:
        """Trials that have begun, replicates aside."""
        begun = [*(each.stored for each in self._results.told.values()), *pending]
        # A told trial that is trained longer is pending too.
        return self._number - len({each.number for each in begun if each.is_replicate})

    def _ask(self, pending: Sequence[Stored]) -> Stored:
        """A new trial: the next of the recipe's own specs, or what the strategy proposes."""
        self._announce(self._number)
        given, index = self._plan.given, self._num_originals(pending)
        if index < len(given):
            candidate, genome = given[index], None
        else:
            contexts = {name: target.contexts for name, target in self._recipe.targets.items()}
            limits = telling.limits(self._recipe.budgets, contexts)
            known = [each for each in self._results.by_number() if each.genome is not None]
            screen = self._plan.screen
            before = 0 if screen is None else screen.num_ruled_out
            proposal = telling.ask(
                self._plan.strategy,
                self._number,
                self._recipe.seed,
                telling.tell(known, self._reference_run.noise, limits),
                [
                    Pending(each.number, found, each.candidate.replicates)
                    for each in pending
                    if each.number not in self._results.told
                    and (found := genome_of(each)) is not None
                ],
                len(given),
            )
            candidate, genome = self._plan.candidate(proposal), proposal.genome
            if screen is not None:
                update = {"num_ruled_out": screen.num_ruled_out - before}
                candidate = candidate.model_copy(update=update)
        costs = self._plan.costs(candidate.spec)
        told = tuple(sorted(self._results.told))
        stored = Stored(number=self._number, candidate=candidate, costs=costs, told=told)
        self._create(stored, genome)
        return stored

    def _replicate(self, original: telling.Finished) -> Stored:
        """The same candidate once more, under a number of its own and hence with other seeds."""
        of, costs = original.stored.number, original.stored.costs
        update = {
            "origin": "replicate",
            "parents": (of,),
            "replicates": of,
            "num_ruled_out": 0,
        }
        candidate = original.stored.candidate.model_copy(update=update)
        told = tuple(sorted(self._results.told))
        stored = Stored(number=self._number, candidate=candidate, costs=costs, told=told)
        self._create(stored, original.genome)
        return stored

    def _create(self, stored: Stored, genome: Genome | None) -> None:
        """Begin a trial, with its spec beside its files."""
        self._home.trial(stored.number).write_spec(stored.candidate.spec.to_json())
        self._database.create(stored, self._summary(genome))

    def _summary(self, genome: Genome | None) -> dict[str, tuple[int, int]]:
        """What Optuna's tools can relate to results: counts in a genome, each with its largest."""
        if genome is None:
            return {}
        most = max(self._recipe.space.num_blocks)
        return {name: (count, most) for name, count in summary(self._plan.space, genome).items()}
