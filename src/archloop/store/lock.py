"""One process per study: a lock on its folder that ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archloop.errors import UserError

_held: set[Path] = set()


class StudyBusyError(UserError):
    """Another run works in this folder."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; it is freed by the system however the process ends.

    A record lock is not inherited by worker processes, so one that outlives a killed study does
    not keep the folder.

    Raises:
        StudyBusyError: another run has it.
    """
    path = (folder / "study.lock").resolve()
    if path in _held:
        raise StudyBusyError(f"{folder}: this process is already running the study; wait for it")
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            who = file.read(20).strip()
            raise StudyBusyError(
                f"{folder}: process {who or '(unknown)'} is running this study; wait for it, or "
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
