"""The study in Optuna: trials with their genome and result, readable by Optuna's own tools.

Optuna is the store, not the searcher. A trial takes four short transactions: created RUNNING with
its genome and a few summary parameters, then result, constraints and state. What has been told is
kept in memory as well, so that nothing is read back while a study runs.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict

from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import BrokenBudget, Objectives, Readings
from archloop.store.record import TrialState as State

_STATES = {
    "complete": TrialState.COMPLETE,
    "rejected": TrialState.PRUNED,
    "unsupported": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


class Result(BaseModel):
    """How a trial ended: what the next proposals and a reader need, small enough for a database.

    Attributes:
        objectives: by rung.
        readings: of latency, memory and each figure that a budget limits, by name: of rejected
            trials too, since their processes show the same noise.
        diverged: the training of the last of these rungs did.
        excess: by how much budgets are exceeded, relative to their limits.
        files: checksum of each stage file, by name.
        seconds: wall time by stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    objectives: tuple[Objectives, ...] = ()
    readings: dict[str, Readings] = {}
    diverged: bool = False
    broken: tuple[BrokenBudget, ...] = ()
    straddles: tuple[str, ...] = ()
    excess: float = 0.0
    hypervolume_gain: float | None = None
    error: str | None = None
    files: dict[str, str] = {}
    seconds: dict[str, float] = {}

    @property
    def scored(self) -> bool:
        """It may stand on rung 0's front: it was trained there, and did not diverge."""
        return bool(self.objectives) and not (self.diverged and len(self.objectives) == 1)


class Stored(BaseModel):
    """A trial as the database has it; `result` is None while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    genome: dict[str, Any]
    origin: str
    parents: tuple[int, ...]
    digest: str
    replicates: int | None = None
    result: Result | None = None


class Database:
    """An Optuna study, written by one process at a time.

    Args:
        storage: that has the study.
        name: of the study.

    Raises:
        KeyError: there is no study of this name.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._study = storage.get_study_id_from_name(name)
        self._ids: dict[int, int] = {}

    def attribute(self, key: str) -> Any:
        """A value of the study as a whole; None when it is not set."""
        return self._storage.get_study_user_attrs(self._study).get(key)

    def set_attribute(self, key: str, value: Any) -> None:
        """Store a JSON value of the study as a whole."""
        self._storage.set_study_user_attr(self._study, key, value)

    def trials(self) -> list[Stored]:
        """All trials by number."""
        found = self._storage.get_all_trials(self._study, deepcopy=False)
        self._ids = {trial.number: trial._trial_id for trial in found}
        return [_stored(trial) for trial in sorted(found, key=lambda trial: trial.number)]

    def create(self, trial: Stored, summary: Mapping[str, tuple[int, int]]) -> None:
        """Add a RUNNING trial, in one transaction.

        Args:
            trial: its number must be the next one.
            summary: value and largest possible value of each summary parameter.
        """
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
            user_attrs=trial.model_dump(mode="json", exclude={"number", "result"}),
            system_attrs={},
            intermediate_values={},
            trial_id=-1,
        )
        trial_id = self._storage.create_new_trial(self._study, template)
        number = self._storage.get_trial_number_from_id(trial_id)
        assert number == trial.number, f"trial {trial.number} became {number}"
        self._ids[number] = trial_id

    def tell(self, number: int, result: Result) -> None:
        """Store a trial's result, then its end: a trial with an end has its result."""
        assert result.state != "running"
        trial_id = self._ids[number]
        self._storage.set_trial_user_attr(trial_id, "result", result.model_dump(mode="json"))
        if result.state in ("complete", "rejected"):
            # Above zero means infeasible, to Optuna's tools as well.
            excess = [result.excess]
            self._storage.set_trial_system_attr(trial_id, "constraints", excess)
        values = None
        if result.state == "complete":
            rung = result.objectives[0]
            values = [rung.mean(objective.name) for objective in OBJECTIVES]
        self._storage.set_trial_state_values(trial_id, _STATES[result.state], values)

    def close(self) -> None:
        """Give the connection back."""
        self._storage.remove_session()


def _stored(trial: FrozenTrial) -> Stored:
    attributes = trial.user_attrs
    return Stored(
        number=trial.number,
        genome=attributes["genome"],
        origin=attributes["origin"],
        parents=attributes["parents"],
        digest=attributes["digest"],
        replicates=attributes["replicates"],
        result=None if trial.state == TrialState.RUNNING else attributes["result"],
    )
