"""Opening a study's database: made whole or not at all, for one writer and any number of readers.

Optuna makes tables, indexes and the study itself in many steps; a process killed between them would
leave a database that lacks some. So a new SQLite file is made beside its place and renamed into it.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from archloop.errors import UserError
from archloop.files import publish
from archloop.store.database import Database

FILE = "study.db"
OBJECTIVES = ("quality", "latency", "memory")
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE)

_METRIC_NAMES = "study:metric_names"


def open_database(folder: Path, url: str | None, name: str) -> Database:
    """The study's database, made if there is none.

    Args:
        folder: of the study.
        url: of another RDB; None means SQLite in the folder.
        name: of the study.

    Raises:
        UserError: the URL or its driver does not work.
        OSError: the file cannot be written.
    """
    _quiet()
    if url is not None:
        return _open_url(url, name)
    path = folder / FILE
    if not path.exists():
        _make(path, name)

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        # A reader does not wait for the writer; a killed process leaves a sound file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return Database(get_storage(_sqlite(connect)), name)


def open_for_reading(folder: Path, url: str | None, name: str) -> Database:
    """The database of a study that exists; nothing is written.

    Raises:
        UserError: there is no such study.
    """
    _quiet()
    path = folder / FILE
    if url is None and not path.is_file():
        raise UserError(f"{folder}: no study here ({FILE} is missing)")
    # Without a writer there is no log to share, and a folder that is read-only has no room for one.
    alone = not path.with_name(f"{FILE}-wal").exists() and not os.access(folder, os.W_OK)

    def connect() -> sqlite3.Connection:
        mode = "immutable=1" if alone else "mode=ro"
        uri = f"file:{quote(str(path.resolve()))}?{mode}"
        return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)

    try:
        storage = _sqlite(connect) if url is None else RDBStorage(url, skip_table_creation=True)
        return Database(storage, name)
    except (KeyError, SQLAlchemyError, sqlite3.Error, StorageInternalError, RuntimeError) as error:
        what = cause(error)
        remedy = "; restore the database from a copy"
        if url is not None:
            remedy = "; does its database take a password? Give --storage"
        raise UserError(f"{folder}: study {name!r} cannot be read: {what}{remedy}") from error


def cause(error: Exception) -> str:
    """What is wrong with a database, in one line.

    Optuna's own words only say that something went wrong; the cause is the driver's.
    """
    wrapped = isinstance(error, StorageInternalError) and error.__cause__ is not None
    source = error.__cause__ if wrapped else error
    return " ".join(str(getattr(source, "orig", None) or source).split())[:200]


def _make(path: Path, name: str) -> None:
    """A new database with its study, in its place only when it is whole."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)
    storage = _sqlite(lambda: sqlite3.connect(draft, check_same_thread=False), tables=True)
    _create_study(storage, name)
    storage.remove_session()
    storage.engine.dispose()
    publish(draft, path)


def _open_url(url: str, name: str) -> Database:
    try:
        storage = get_storage(RDBStorage(url))
        with suppress(DuplicatedStudyError):
            _create_study(storage, name)
        return Database(storage, name)
    except ImportError as error:
        raise UserError(f"storage: {error}; install the driver that the URL names") from error
    except SQLAlchemyError as error:
        raise UserError(f"storage: the database cannot be opened: {cause(error)}") from error


def _create_study(storage: BaseStorage, name: str) -> None:
    study = storage.create_new_study(DIRECTIONS, name)
    storage.set_study_system_attr(study, _METRIC_NAMES, list(OBJECTIVES))


def _sqlite(connect: Callable[[], sqlite3.Connection], *, tables: bool = False) -> RDBStorage:
    """A storage on connections of our own making, whatever characters the path has."""
    options: dict[str, Any] = {"creator": connect}
    return RDBStorage(f"sqlite:///{FILE}", options, skip_table_creation=not tables)


def _quiet() -> None:
    """Optuna announces each study on stderr, where our own progress is shown."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
