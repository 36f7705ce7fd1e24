"""One process per study: a lock on its folder and one in its database, which end with the process.

The folder's lock keeps two runs of one folder apart. A database by URL may be shared by folders,
and by machines, so a study is locked there as well: in PostgreSQL by an advisory lock, which the
server frees when the connection ends; beside an SQLite file by a lock on a file of its own.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from archloop.errors import UserError

_SETUP = "tables"
"""Key of the lock under which tables are made; a study's key has a slash, so it is another."""

_held: set[Path] = set()


class StudyBusyError(UserError):
    """Another run works on this study."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; it is freed by the system however the process ends.

    A record lock is not inherited by worker processes, so one that outlives a killed study does
    not keep the folder.

    Raises:
        StudyBusyError: another run has it.
    """
    with _locked_file(folder / "study.lock", str(folder)):
        yield


@contextmanager
def exclusive_in(url: str, name: str) -> Iterator[None]:
    """Hold a study's lock in the database of a URL.

    Raises:
        StudyBusyError: another run, of this folder or another, has it.
        UserError: the database cannot be reached, or of a backend whose locks are not known.
    """
    what = f"study {name!r} in the database"
    backend = _backend(url)
    if backend == "postgresql":
        with _locked_server(url, f"study/{name}", what):
            yield
        return
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with _locked_file(file.with_name(f".{file.name}.{name}.lock"), what):
        yield


@contextmanager
def making_tables(url: str) -> Iterator[None]:
    """Hold a database while its tables are made or looked up: two at once would both make them."""
    if _backend(url) == "postgresql":
        with _locked_server(url, _SETUP, None):
            yield
        return
    file = sqlite_file(url)
    if file is None:
        yield
        return
    with file.with_name(f".{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for a database in memory."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        rows = connection.execute(text("PRAGMA database_list")).all()
    found = next(str(row[2]) for row in rows if row[1] == "main")
    return Path(found) if found else None


def _backend(url: str) -> str:
    backend = make_url(url).get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise UserError(
            f"storage: a study cannot be locked in {backend}; give a PostgreSQL or an SQLite URL"
        )
    return backend


@contextmanager
def _locked_file(path: Path, what: str) -> Iterator[None]:
    path = path.resolve()
    if path in _held:
        raise StudyBusyError(f"{what}: this process is already running the study; wait for it")
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            who = file.read(20).strip()
            raise StudyBusyError(
                f"{what}: process {who or '(unknown)'} is running this study; wait for it, or "
                "stop it first"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)


@contextmanager
def _locked_server(url: str, key: str, what: str | None) -> Iterator[None]:
    """An advisory lock of PostgreSQL; waited for when nobody needs to be told (`what` is None)."""
    digest = hashlib.sha256(f"archloop/{key}".encode()).digest()
    number = int.from_bytes(digest[:8], signed=True)
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        connection = engine.connect()
    except SQLAlchemyError as error:
        line = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise UserError(f"storage: the database cannot be opened: {line}") from error
    with connection:
        if what is None:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": number})
        else:
            mine = connection.execute(
                text("SELECT pg_try_advisory_lock(:key)"), {"key": number}
            ).scalar_one()
            if not mine:
                raise StudyBusyError(
                    f"{what}: another process, perhaps on another machine, is running this study; "
                    "wait for it, or stop it first"
                )
        # Closing the connection frees the lock, as the end of this process would.
        yield
