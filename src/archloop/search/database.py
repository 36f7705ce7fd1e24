"""The study in Optuna: trials with their genome and result, readable by Optuna's own tools.

Optuna is the store, not the searcher. A trial takes four short transactions: created RUNNING with
its genome and a few summary parameters, then result, constraints and state. What has been told is
kept in memory as well, so that nothing is read back while a study runs.
"""

import logging
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError

from archloop.search.record import BrokenBudget, Objectives
from archloop.search.record import TrialState as State

OBJECTIVES = ("quality", "latency", "memory")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE)
FILE = "study.db"
FORMAT = 1

_METRIC_NAMES = "study:metric_names"
_STATES = {
    "complete": TrialState.COMPLETE,
    "rejected": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Result(BaseModel):
    """How a trial ended: what the next proposals and a reader need, small enough for a database.

    Attributes:
        objectives: by rung.
        excess: by how much budgets are exceeded, relative to their limits.
        files: checksum of each stage file, by name.
        seconds: wall time by stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    objectives: tuple[Objectives, ...] = ()
    broken: tuple[BrokenBudget, ...] = ()
    straddles: tuple[str, ...] = ()
    excess: float = 0.0
    hypervolume_gain: float | None = None
    error: str | None = None
    files: dict[str, str] = {}
    seconds: dict[str, float] = {}


class Stored(BaseModel):
    """A trial as the database has it; `result` is None while it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    genome: dict[str, Any]
    origin: str
    parents: tuple[int, ...]
    digest: str
    result: Result | None = None


class Database:
    """An Optuna study opened for writing, by one process at a time.

    Raises:
        OSError: the file cannot be opened or created.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        try:
            self._study = storage.create_new_study(DIRECTIONS, name)
        except DuplicatedStudyError:
            self._study = storage.get_study_id_from_name(name)
        self._ids: dict[int, int] = {}

    def attribute(self, key: str) -> Any:
        """A value of the study as a whole; None when it is not set."""
        return self._storage.get_study_user_attrs(self._study).get(key)

    def set_attribute(self, key: str, value: Any) -> None:
        """Store a JSON value of the study as a whole."""
        self._storage.set_study_user_attr(self._study, key, value)

    def name_objectives(self) -> None:
        """Tell Optuna's tools what the values are called."""
        self._storage.set_study_system_attr(self._study, _METRIC_NAMES, list(OBJECTIVES))

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
        if result.state != "failed":
            # Above zero means infeasible, to Optuna's tools as well.
            excess = [result.excess]
            self._storage.set_trial_system_attr(trial_id, "constraints", excess)
        values = None
        if result.state == "complete":
            rung = result.objectives[0]
            values = [rung.quality, rung.latency, rung.memory]
        self._storage.set_trial_state_values(trial_id, _STATES[result.state], values)

    def close(self) -> None:
        """Give the connection back."""
        self._storage.remove_session()


def open_database(folder: Path, url: str | None, name: str) -> Database:
    """The study's database, made if there is none.

    Args:
        folder: of the study.
        url: of another RDB; None means SQLite in the folder.
        name: of the study.

    Raises:
        OSError, ValueError: it cannot be opened.
    """
    _quiet()
    if url is not None:
        return _connected(url, {}, name)
    path = folder / FILE

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        # A reader does not wait for the writer; a killed process leaves a sound file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return _connected(f"sqlite:///{FILE}", {"creator": connect}, name)


def open_for_reading(folder: Path, url: str | None, name: str) -> Database:
    """The database of a study that exists; nothing is written.

    Raises:
        ValueError: there is no such study.
    """
    _quiet()
    path = folder / FILE
    if url is None and not path.is_file():
        raise ValueError(f"{folder}: no study here ({FILE} is missing)")

    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path.resolve()))}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)

    options: dict[str, Any] = {} if url else {"creator": connect}
    try:
        storage = RDBStorage(
            url or f"sqlite:///{FILE}", engine_kwargs=options, skip_table_creation=True
        )
        storage.get_study_id_from_name(name)
    except (KeyError, SQLAlchemyError, sqlite3.Error, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: study {name!r} cannot be read: {what}") from error
    return _ReadOnly(storage, name)


class _ReadOnly(Database):
    """A study that exists already."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._study = storage.get_study_id_from_name(name)
        self._ids = {}


def _connected(url: str, options: dict[str, Any], name: str) -> Database:
    try:
        return Database(get_storage(RDBStorage(url, engine_kwargs=options)), name)
    except ImportError as error:
        raise ValueError(f"storage: {error}; install the driver that the URL names") from error
    except SQLAlchemyError as error:
        what = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise ValueError(f"storage: the study's database cannot be opened: {what}") from error


def _stored(trial: FrozenTrial) -> Stored:
    attributes = trial.user_attrs
    return Stored(
        number=trial.number,
        genome=attributes["genome"],
        origin=attributes["origin"],
        parents=attributes["parents"],
        digest=attributes["digest"],
        result=None if trial.state == TrialState.RUNNING else attributes["result"],
    )


def _quiet() -> None:
    """Optuna announces each study on stderr, where our own progress is shown."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
