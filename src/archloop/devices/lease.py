"""Who may use a device now: one measurement alone, or any number of trainings.

A measurement beside anything else on the same device measures both, and two at once spoil each
other. So a measurement takes the device's lease alone, and a training shares it with other
trainings. What work takes is a list of claims: a graphics card is measured with the card alone and
a share of its machine. The lease is a lock on a file of this machine: it holds between threads,
processes, studies and users, and the system frees it however its process ends.

Who waits to measure keeps the gate, at which new trainings in line queue, so that one training
after another cannot keep a measurement from its turn for ever. The threads of a process are served
in the order in which they came; between processes it is chance. Who waits inside `told_waiting`
says for what, and who has it.
"""

import fcntl
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from archloop.devices import holders

FOLDER = Path("/tmp/archloop-leases")
"""One for the machine, whatever a user's or a study's own folder of temporary files is."""
ELSEWHERE = "ARCHLOOP_LEASES"
"""Environment variable that names another folder: for studies that were each given cores of their
own and so need not wait for one another."""
POLL_S = 0.05
TELL_AFTER_S = 1.0
"""Waiting that is shorter is not told."""

Listener = Callable[[str], None]
"""Called with what is waited for and who has it, in words; with nothing once the wait is over."""


def _nobody(words: str, /) -> None:
    pass


_listener: ContextVar[Listener] = ContextVar("told_waiting", default=_nobody)


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
def told_waiting(listener: Listener) -> Iterator[None]:
    """Inside, in this thread or task, `listener` is told of each wait for a device."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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


def is_free(claims: Sequence[Claim], *, folder: Path | None = None) -> bool:
    """Whether work that takes these would not have to wait now. Arguments as `held`."""
    try:
        with held(claims, cancelled=lambda: True, folder=folder):
            return True
    except LeaseCancelledError:
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
    wait = Wait(device, (held, gate), cancelled)
    try:
        with _turn(str(folder / name), wait):
            _take(gate, fcntl.LOCK_EX, wait)
            _take(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, wait)
            fcntl.flock(gate, fcntl.LOCK_UN)
        wait.over()
        # Systems delete files in such folders that nobody has touched for days; a lock file that is
        # deleted while held would be made, and locked, a second time.
        for handle in (gate, held):
            os.utime(handle)
        yield
    finally:
        # Closing frees both.
        os.close(gate)
        os.close(held)


class Wait:
    """A wait for a turn: ended when nobody wants it any more, told when it takes long.

    Args:
        what: is waited for, such as a device's name.
        files: whose locks stand in the way, the nearest first; none says nothing of who has it.
        cancelled: whether to wait no longer.
    """

    def __init__(
        self, what: str, files: tuple[int, ...] = (), cancelled: Callable[[], bool] = _never
    ) -> None:
        self._what, self._files, self._cancelled = what, files, cancelled
        self._began = time.monotonic()
        self._told = False

    def once(self) -> None:
        """Wait a moment.

        Raises:
            LeaseCancelledError: it is not waited for any longer.
        """
        if self._cancelled():
            raise LeaseCancelledError("cancelled while waiting for a device")
        if not self._told and self.lasted > TELL_AFTER_S:
            self._told = True
            _listener.get()(", ".join([self._what, *self._who()]))
        time.sleep(POLL_S)

    @property
    def lasted(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def over(self) -> None:
        """What was waited for is there."""
        if self._told:
            _listener.get()("")

    def _who(self) -> list[str]:
        if not self._files:
            return []
        # This process has its own, open gate among the locks while it waits for the lease.
        found = next(filter(None, map(holders.holders, self._files)), [])
        if not found:
            return ["which another process uses"]
        if os.getpid() in found:
            return ["which another job of this process uses"]
        return [f"which {' and '.join(map(holders.in_words, found))} uses"]


_lines: dict[tuple[int, str], deque[object]] = {}
"""Who waits for a lock, by process and path. A forked child finds its parent's lines under the
parent's number, so that it does not wait for threads that it does not have."""


@contextmanager
def _turn(path: str, wait: Wait) -> Iterator[None]:
    """Wait until no other thread of this process has waited longer for the same lock.

    A lock that all of them asked for at once would go to whoever happens to ask first after it was
    freed, and one could lose every time.
    """
    line = _lines.setdefault((os.getpid(), path), deque())
    place = object()
    line.append(place)
    try:
        while line[0] is not place:
            wait.once()
        yield
    finally:
        line.remove(place)


def _take(file: int, how: int, wait: Wait) -> None:
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            wait.once()


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
