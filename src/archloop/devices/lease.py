"""Who may use a device now: one measurement alone, or any number of trainings.

A measurement beside anything else on the same device measures both, and two at once spoil each
other. So a measurement takes the device's lease alone, and a training shares it with other
trainings. The lease is a lock on a file of this machine: it holds between threads, processes and
studies, and the system frees it however its process ends.

Who waits to measure keeps the gate, at which new trainings queue, so that one training after
another cannot keep a measurement from its turn for ever.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.05


class LeaseCancelledError(RuntimeError):
    """Who waited for a device was told not to wait any longer."""


def _never() -> bool:
    return False


@contextmanager
def lease(
    device: str,
    *,
    alone: bool,
    cancelled: Callable[[], bool] = _never,
    folder: Path | None = None,
) -> Iterator[None]:
    """Wait for a device and hold it.

    Args:
        device: what its users call it, such as ``host`` or ``host cuda:0``.
        alone: for a measurement; trainings share.
        cancelled: asked while waiting.
        folder: of the locks; by default one that all users of this machine share.

    Raises:
        LeaseCancelledError: `cancelled` said so.
        OSError: the lock's file cannot be made.
    """
    folder = _shared_folder() if folder is None else folder
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", device)
    gate, held = (_open(folder / f"{name}.{kind}") for kind in ("gate", "lease"))
    try:
        _take(gate, fcntl.LOCK_EX, cancelled)
        _take(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, cancelled)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
    finally:
        # Closing frees both.
        os.close(gate)
        os.close(held)


def _take(file: int, how: int, cancelled: Callable[[], bool]) -> None:
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if cancelled():
                raise LeaseCancelledError("cancelled while waiting for a device") from None
            time.sleep(POLL_S)


def _open(path: Path) -> int:
    """A lock's file; its content is never looked at, and everybody here must be able to take it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        # Without O_CREAT: in a folder like /tmp the system forbids that for another user's file.
        return os.open(path, flags)
    os.fchmod(handle, 0o666)
    return handle


def _shared_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / "archloop-leases"
    try:
        folder.mkdir()
        folder.chmod(0o1777)
    except FileExistsError:
        pass
    return folder
