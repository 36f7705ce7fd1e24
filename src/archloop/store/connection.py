"""Opening a study's database: made whole or not at all, for one writer and any number of readers.

Optuna makes tables, indexes and the study itself in many steps; a process killed between them would
leave a database that lacks some. So a new SQLite file is made beside its place and renamed into it.
"""

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from archloop.errors import UserError
from archloop.files import publish
from archloop.scratch import Scratch
from archloop.store.database import Database
from archloop.store.folder import DATABASE
from archloop.store.identity import Card
from archloop.store.lock import making_tables

_DIRECTIONS = {"maximize": StudyDirection.MAXIMIZE, "minimize": StudyDirection.MINIMIZE}
_METRIC_NAMES = "study:metric_names"
_FAULTS = (KeyError, SQLAlchemyError, sqlite3.Error, StorageInternalError, RuntimeError)


def open_database(folder: Path, url: str | None, card: Card) -> Database:
    """The study's database, made if there is none.

    Args:
        folder: of the study.
        url: of another RDB; None means SQLite in the folder.
        card: of the study; kept in the database when the study is made.

    Raises:
        UserError: the URL or its driver does not work.
        OSError: the file cannot be written.
    """
    _quiet()
    if url is not None:
        return _open_url(url, card)
    path = folder / DATABASE
    if not path.exists():
        _make(path, card)

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        # A reader does not wait for the writer; a killed process leaves a sound file.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return Database(_sqlite(connect), card.name, close=lambda: _settle(path))


def open_for_reading(folder: Path, url: str | None, name: str | None) -> Database:
    """The database of a study that exists; nothing is written there.

    Args:
        folder: of the study.
        url: of another RDB; None means SQLite in the folder.
        name: of the study; None takes the only one that the database has.

    Raises:
        UserError: there is no such study.
    """
    _quiet()
    path = folder / DATABASE
    if url is None and not path.is_file():
        raise UserError(f"{folder}: no study here ({DATABASE} is missing)")
    scratch: Callable[[], None] = _nothing
    try:
        if url is None:
            path, immutable, scratch = _readable(path)
            uri = f"file:{quote(str(path.resolve()))}?{'immutable=1' if immutable else 'mode=ro'}"
            storage = _sqlite(
                lambda: sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)
            )
        else:
            storage = RDBStorage(url, skip_table_creation=True)
        return Database(storage, name, close=scratch)
    except _FAULTS as error:
        scratch()
        remedy = "; restore the database from a copy"
        if url is not None:
            remedy = (
                "; does its database take a password? Give --storage, or PGPASSWORD in the "
                "environment of a command that has no such option"
            )
        what = f"study {name!r}" if name else "the study"
        raise UserError(f"{folder}: {what} cannot be read: {cause(error)}{remedy}") from error


def peek(folder: Path, url: str | None, name: str) -> Database | None:
    """The database for reading if it has a study of this name, else None; nothing is written.

    Raises:
        UserError: the URL or its driver does not work, or the file is damaged.
    """
    _quiet()
    if url is None:
        return open_for_reading(folder, None, name) if (folder / DATABASE).is_file() else None
    try:
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        if not sqlalchemy.inspect(engine).has_table("version_info"):
            return None
        with making_tables(url):
            # Whoever makes the tables has finished; Optuna writes its version where it finds none.
            storage = RDBStorage(url, skip_table_creation=True)
        try:
            return Database(storage, name)
        except KeyError:
            storage.engine.dispose()
            return None
    except ImportError as error:
        raise UserError(f"storage: {error}; install the driver that the URL names") from error
    except _FAULTS as error:
        raise UserError(f"storage: the database cannot be opened: {cause(error)}") from error


def remove_study(folder: Path, url: str | None, name: str) -> None:
    """Take a study out of its database."""
    if url is None:
        for file in folder.glob(f"{DATABASE}*"):
            file.unlink()
        return
    storage = RDBStorage(url)
    storage.delete_study(storage.get_study_id_from_name(name))
    storage.engine.dispose()


def cause(error: BaseException) -> str:
    """What is wrong with a database, in one line.

    Optuna's own words only say that something went wrong; the cause is the driver's.
    """
    wrapped = isinstance(error, StorageInternalError) and error.__cause__ is not None
    source = error.__cause__ if wrapped else error
    return " ".join(str(getattr(source, "orig", None) or source).split())[:200]


def _make(path: Path, card: Card) -> None:
    """A new database with its study, in its place only when it is whole."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.with_name(f"{draft.name}-journal").unlink(missing_ok=True)
    storage = _sqlite(lambda: sqlite3.connect(draft, check_same_thread=False), tables=True)
    _create_study(storage, card)
    storage.remove_session()
    storage.engine.dispose()
    publish(draft, path)


def _open_url(url: str, card: Card) -> Database:
    try:
        with making_tables(url):
            storage = RDBStorage(url)
        _create_study(storage, card)
        return Database(storage, card.name)
    except ImportError as error:
        raise UserError(f"storage: {error}; install the driver that the URL names") from error
    except SQLAlchemyError as error:
        raise UserError(f"storage: the database cannot be opened: {cause(error)}") from error


def _create_study(storage: RDBStorage, card: Card) -> None:
    """A study that says which it is; one that a killed process left without a card gets it."""
    directions = [_DIRECTIONS[each.direction] for each in card.objectives]
    with suppress(DuplicatedStudyError):
        storage.create_new_study(directions, card.name)
    study = storage.get_study_id_from_name(card.name)
    if "card" not in storage.get_study_user_attrs(study):
        storage.set_study_system_attr(study, _METRIC_NAMES, [o.name for o in card.objectives])
        storage.set_study_user_attr(study, "card", card.model_dump(mode="json"))


def _settle(path: Path) -> None:
    """Bring everything into the one file, so that a copy of it is the whole study.

    While a reader looks on, the log stays in use; what it has is then written into the file at
    least, and the last to close takes the log away.
    """
    connection = sqlite3.connect(path, timeout=1)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError:
        logging.getLogger(__name__).debug("a reader keeps the log of %s in use", path)
    finally:
        connection.close()


def _readable(path: Path) -> tuple[Path, bool, Callable[[], None]]:
    """Where to read an SQLite file, whether nobody can write it there, and what to do afterwards.

    A log that a killed process left can be read only beside an index of it, which the reader would
    have to write. Where it is missing, or the folder is read-only, a copy elsewhere is read.
    """
    logs = [path.with_name(f"{path.name}-{log}") for log in ("wal", "journal")]
    left = [log for log in logs if log.exists() and log.stat().st_size]
    writable = os.access(path.parent, os.W_OK)
    if not left:
        return path, not writable, _nothing
    index = path.with_name(f"{path.name}-shm")
    if writable and index.exists() and left == logs[:1]:
        return path, False, _nothing
    scratch = Scratch("database")
    for file in (path, *left):
        shutil.copy(file, scratch.name)
    copy = Path(scratch.name) / path.name
    # Opened once to write: what the log has is taken over, or half a transaction taken back.
    _settle(copy)
    return copy, False, scratch.cleanup


def _nothing() -> None:
    """There is nothing to do."""


def _sqlite(connect: Callable[[], sqlite3.Connection], *, tables: bool = False) -> RDBStorage:
    """A storage on connections of our own making, whatever characters the path has."""
    options: dict[str, Any] = {"creator": connect}
    return RDBStorage(f"sqlite:///{DATABASE}", options, skip_table_creation=not tables)


def _quiet() -> None:
    """Optuna announces each study on stderr, where our own progress is shown."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
