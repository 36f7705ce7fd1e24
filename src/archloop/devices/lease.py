"""Who may use a device now: one measurement alone, or any number of trainings.

A measurement beside anything else on the same device measures both, and two at once spoil each
other. So a measurement takes the device's lease alone, and a training shares it with other
trainings. What work takes is a list of claims: a graphics card is measured with the card alone and
a share of its machine. The lease is a lock on a file of this machine: it holds between threads,
processes, studies and users, and the system frees it however its process ends.

Who waits to measure keeps the gate, at which new trainings queue, so that one training after
another cannot keep a measurement from its turn for ever.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

FOLDER = Path("/tmp/archloop-leases")
"""One for the machine, whatever a user's or a study's own folder of temporary files is."""
ELSEWHERE = "ARCHLOOP_LEASES"
"""Environment variable that names another folder: for studies that were each given cores of their
own and so need not wait for one another."""
POLL_S = 0.05


class LeaseCancelledError(RuntimeError):
    """Who waited for a device was told not to wait any longer."""


class Claim(NamedTuple):
    """A device that work takes.

    Attributes:
        name: what its users call it, such as ``host`` or ``host card 0``.
        alone: for a measurement; what only needs a share does not disturb others that do.
    """

    name: str
    alone: bool

    def excludes(self, other: "Claim") -> bool:
        """Whether both cannot be held at once."""
        return self.name == other.name and (self.alone or other.alone)


def exclude(first: Sequence[Claim], second: Sequence[Claim]) -> bool:
    """Whether two pieces of work cannot be done at once."""
    return any(one.excludes(other) for one in first for other in second)


def _never() -> bool:
    return False


@contextmanager
def held(
    claims: Sequence[Claim], *, cancelled: Callable[[], bool] = _never, folder: Path | None = None
) -> Iterator[None]:
    """Wait for all devices that work takes, and hold them. Arguments and errors as `lease`."""
    with ExitStack() as stack:
        # In one order for all, so that no two wait for what the other holds.
        for name, alone in sorted(claims):
            stack.enter_context(lease(name, alone=alone, cancelled=cancelled, folder=folder))
        yield


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
        device: what its users call it, as a claim's name.
        alone: for a measurement; trainings share.
        cancelled: asked while waiting.
        folder: of the locks, made if missing; if None, what `ELSEWHERE` says, or `FOLDER`.

    Raises:
        LeaseCancelledError: `cancelled` said so.
        OSError: the lock's file cannot be made.
    """
    folder = folder or Path(os.environ.get(ELSEWHERE) or FOLDER)
    _make(folder)
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", device)
    gate, held = (_open(folder / f"{name}.{suffix}") for suffix in ("gate", "lease"))
    try:
        _take(gate, fcntl.LOCK_EX, cancelled)
        _take(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, cancelled)
        fcntl.flock(gate, fcntl.LOCK_UN)
        # Systems delete files in such folders that nobody has touched for days; a lock file that is
        # deleted while held would be made, and locked, a second time.
        for handle in (gate, held):
            os.utime(handle)
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


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
        folder.chmod(0o1777)
    except FileExistsError:
        pass
