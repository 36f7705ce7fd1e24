"""The study in Optuna: trials with their candidate and outcome, readable by Optuna's own tools.

Optuna is the store, not the searcher. A trial takes four short transactions: created RUNNING with
its candidate and a few summary parameters, then outcome, constraints and state. What has been told
is kept in memory as well, so that nothing is read back while a study runs.

Other programs may write to the same study, by Optuna's own tools. Trials that are not archloop's
are passed over; of a trial that was ended from outside, what archloop itself stored counts.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from archloop.ranking.record import Objectives
from archloop.store.identity import of_settings
from archloop.store.record import Candidate, Costs, Outcome

_STATES = {
    "complete": TrialState.COMPLETE,
    "rejected": TrialState.PRUNED,
    "unsupported": TrialState.FAIL,
    "failed": TrialState.FAIL,
}
_OURS = "archloop_number"
"""Attribute that marks a trial as archloop's; Optuna counts the trials of others as well."""


class Stored(BaseModel):
    """A trial as the database has it.

    Attributes:
        number: archloop's own count, from 0.
        told: numbers of the trials that were told when this one was proposed; those below its own
            number that were not, were pending.
        outcome: None while it runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    candidate: Candidate
    costs: Costs
    told: tuple[int, ...] = ()
    outcome: Outcome | None = None

    @property
    def is_replicate(self) -> bool:
        """Whether it repeats another trial."""
        return self.candidate.replicates is not None


class Database:
    """An Optuna study, written by one process at a time.

    Args:
        storage: that has the study.
        name: of the study; None takes the only one there is.
        close: called once the connection was given back.

    Raises:
        KeyError: there is no study of this name, or none or several if no name is given.
    """

    def __init__(
        self, storage: RDBStorage, name: str | None, close: Callable[[], None] | None = None
    ) -> None:
        self._engine = storage.engine
        self._storage = get_storage(storage)
        self._close = close
        if name is None:
            names = [study.study_name for study in storage.get_all_studies()]
            if len(names) != 1:
                raise KeyError(f"the database has {len(names)} studies, not one")
            name = names[0]
        self._study = storage.get_study_id_from_name(name)
        self._ids: dict[int, int] = {}

    def attributes(self) -> dict[str, Any]:
        """All values of the study as a whole."""
        return self._storage.get_study_user_attrs(self._study)

    def attribute(self, key: str) -> Any:
        """A value of the study as a whole; None when it is not set."""
        return self.attributes().get(key)

    def set_attribute(self, key: str, value: Any) -> None:
        """Store a JSON value of the study as a whole."""
        self._storage.set_study_user_attr(self._study, key, value)

    def has_trials(self) -> bool:
        """Whether there is any trial, of archloop or not."""
        return bool(self._storage.get_n_trials(self._study))

    def trials(self) -> list[Stored]:
        """All trials of archloop by number."""
        found = self._storage.get_all_trials(self._study, deepcopy=False)
        ours: dict[int, FrozenTrial] = {}
        for trial in found:
            # The first of a number: Optuna's ways to try again copy a trial with its attributes.
            if _OURS in trial.user_attrs:
                ours.setdefault(trial.user_attrs[_OURS], trial)
        self._ids = {number: trial._trial_id for number, trial in ours.items()}
        attributes = self.attributes()
        return [_stored(ours[number], attributes.get(_later(number))) for number in sorted(ours)]

    def create(self, trial: Stored, summary: Mapping[str, tuple[int, int]]) -> None:
        """Add a RUNNING trial, in one transaction.

        Args:
            trial: its number must be new.
            summary: value and largest possible value of each summary parameter.
        """
        assert trial.number not in self._ids, f"trial {trial.number} is there already"
        distributions: dict[str, BaseDistribution] = {
            key: IntDistribution(0, most) for key, (_, most) in summary.items()
        }
        template = FrozenTrial(
            number=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={key: value for key, (value, _) in summary.items()},
            distributions=distributions,
            user_attrs={
                _OURS: trial.number,
                "told": _runs(trial.told),
                "costs": trial.costs.model_dump(mode="json"),
                **trial.candidate.model_dump(mode="json"),
            },
            system_attrs={},
            intermediate_values={},
            trial_id=-1,
        )
        self._ids[trial.number] = self._storage.create_new_trial(self._study, template)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Store how a trial ended: first the outcome, then the end, so that no end lacks one.

        A trial that Optuna takes for finished, because it was ended from outside or is done once
        more, cannot change there; its outcome is then kept beside it.
        """
        assert outcome.state != "running"
        trial_id = self._ids[number]
        data = outcome.model_dump(mode="json")
        values = None
        if outcome.state == "complete":
            values = self._values(outcome.by_rung[0])
        try:
            self._storage.set_trial_user_attr(trial_id, "outcome", data)
            if outcome.state in ("complete", "rejected"):
                # Above zero means infeasible, to Optuna's tools as well.
                excess = [outcome.excess]
                self._storage.set_trial_system_attr(trial_id, "constraints", excess)
            self._storage.set_trial_state_values(trial_id, _STATES[outcome.state], values)
        except UpdateFinishedTrialError:
            self.set_attribute(_later(number), data)

    def _values(self, first: Objectives) -> list[float]:
        """One for each objective of the recipe, as Optuna wants it.

        Of quality that could not be read it is 0, which is what a stack without any skill has.
        """
        read = {name: readings.mean for name, readings in first.values.items()}
        wanted = of_settings(self.attribute("card")["settings"])
        return [read.get(objective.name, 0.0) for objective in wanted]

    def close(self) -> None:
        """Give the connection back."""
        self._storage.remove_session()
        self._engine.dispose()
        if self._close is not None:
            self._close()


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, one past the last) of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs


def _later(number: int) -> str:
    """Attribute of the study with an outcome that its trial can no longer take."""
    return f"outcome:{number}"


def _stored(trial: FrozenTrial, later: Any) -> Stored:
    attributes = trial.user_attrs
    # A study from before a field with a default was added is read without it.
    kept = {name: attributes[name] for name in Candidate.model_fields if name in attributes}
    outcome = attributes.get("outcome") if later is None else later
    if trial.state == TrialState.RUNNING and later is None:
        # It may have been killed between its outcome and its end; the end is what counts.
        outcome = None
    elif outcome is None:
        error = "ended from outside archloop, without an outcome"
        outcome = Outcome(state="failed", error=error)
    return Stored(
        number=attributes[_OURS],
        candidate=Candidate(**kept),
        costs=attributes["costs"],
        told=tuple(number for first, last in attributes["told"] for number in range(first, last)),
        outcome=outcome,
    )
