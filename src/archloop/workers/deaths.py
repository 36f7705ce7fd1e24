"""Why a worker gave no answer: one table for all work, on every device.

A process may be ended by a signal here (its status is negative), or elsewhere (a shell says
128 + the signal's number), or the way to its device may have broken. What a worker still says
itself is classified by `cause_of`.
"""

import errno
import signal
from typing import Literal

from archloop.devices.base import DeviceError
from archloop.errors import UserError

Cause = Literal["crash", "timeout", "memory", "disk", "gone", "missing", "unsupported"]
"""Crashed; took too long; ran out of memory; the disk is full; the device cannot be reached any
more; the device lacks something; the engine refuses the stack."""
Role = Literal["candidate", "reference", "worker"]

_MEMORY_WORDS = (
    "allocate memory",
    "bad_alloc",
    "out of memory",
    "cannot allocate",
    "not enough memory",
)
"""How engines say that memory ran out when they do not raise MemoryError."""
_DISK_WORDS = ("no space left on device", "disk quota exceeded")
_SHELL = 128
"""A shell adds it to the number of the signal that ended its program."""
_TIMERS = ("SIGALRM", "SIGXCPU")


class WorkerError(Exception):
    """A worker came to no answer.

    Attributes:
        cause: why.
        detail: one line.
        role: whose process it was.
    """

    def __init__(self, cause: Cause, detail: str, role: Role = "worker") -> None:
        super().__init__(f"{role}: {cause}: {detail}" if role != "worker" else f"{cause}: {detail}")
        self.cause, self.detail, self.role = cause, detail, role


def of_status(status: int, last_line: str, *, memory_ran_out: bool) -> tuple[Cause, str]:
    """Cause and one line, from how a process ended.

    Args:
        status: exit status as Python tells it: negative for a signal.
        last_line: of its standard error.
        memory_ran_out: the device counted a process killed for memory meanwhile, or cannot tell.
    """
    name = _signal(status)
    if name in _TIMERS:
        return "timeout", f"ended by its own timer ({name})"
    if name == "SIGKILL" and memory_ran_out:
        return "memory", "killed because memory ran out"
    lower = last_line.lower()
    if any(word in lower for word in _DISK_WORDS):
        return "disk", last_line
    if name is None and (lower.startswith("memoryerror") or _says_memory(lower)):
        return "memory", last_line
    how = f"exit status {status}" if name is None else f"signal {name}"
    return "crash", f"{how}; {last_line or 'no message'}"


def cause_of(error: BaseException) -> Cause:
    """The cause of an error that a worker lived to report."""
    if isinstance(error, (DeviceError, WorkerError)):
        return error.cause
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "disk"
    if isinstance(error, MemoryError) or _says_memory(str(error).lower()):
        return "memory"
    return "unsupported" if isinstance(error, UserError) else "crash"


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _signal(status: int) -> str | None:
    """Name of the signal that ended a process, here or under a shell elsewhere."""
    number = -status if status < 0 else status - _SHELL
    return signal.Signals(number).name if number in set(signal.Signals) else None


def _says_memory(lower: str) -> bool:
    return any(word in lower for word in _MEMORY_WORDS)
