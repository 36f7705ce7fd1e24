"""What the machine under a study may lack: each fault is one line with what to do about it.

Nothing that was finished is lost by any of them, so the same command goes on afterwards.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from archloop.search.errors import DiskFullError, StudyError
from archloop.store.connection import cause
from archloop.store.folder import DATABASE


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """A full disk, or a database that fails, ends the run with what to do.

    Raises:
        DiskFullError: no space is left.
        StudyError: the folder or the database cannot be used.
    """
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
