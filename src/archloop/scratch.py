"""Folders for what goes when its process does, even by a kill that lets nobody clean up.

A folder holds a lock on a file of its own, which the system frees however its owner ends. Whoever
makes the next folder removes those beside it that are archloop's, this user's, and that nobody
holds any more.
"""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

_PREFIX = "archloop-"
_OWNER = ".owner"


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder whose remains are cleared away if its process is killed.

    Args:
        purpose: a word for its name.
        within: folder that it is made in; None for the system's.

    Attributes:
        name: its path.
    """

    def __init__(self, purpose: str, within: Path | None = None) -> None:
        home = Path(tempfile.gettempdir()) if within is None else within
        clear(home)
        super().__init__(prefix=f"{_PREFIX}{purpose}-", dir=home)
        lock = _locked(Path(self.name))
        # Processes that are forked hold it too, so that a folder lives as long as any of them.
        self._unlock = weakref.finalize(self, os.close, lock)

    def cleanup(self) -> None:
        """Remove the folder."""
        super().cleanup()
        self._unlock()


def clear(home: Path, ending: Callable[[Path], None] | None = None) -> None:
    """Remove what processes that were killed left in a folder.

    Args:
        home: the folder.
        ending: called with each of the folders in it before that goes.
    """
    for folder in home.glob(f"{_PREFIX}*"):
        try:
            lock = _abandoned(folder)
        except OSError:
            # It went meanwhile, or is another user's.
            continue
        if lock is not None:
            if ending is not None:
                ending(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int:
    """The lock of a folder that begins; nobody sees the file before the lock is held."""
    draft = folder / f"{_OWNER}.new"
    lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(folder / _OWNER)
    return lock


def _abandoned(folder: Path) -> int | None:
    """The lock of a folder whose owner is gone, held now; None if it is not for us to remove.

    Raises:
        OSError: there is no such lock, or it may not be opened.
    """
    about = folder.lstat()
    if about.st_uid != os.getuid() or folder.is_symlink():
        return None
    lock = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
