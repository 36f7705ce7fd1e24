"""Where the time goes: wall time by phase, and what the main process spends besides.

A job that waits for its turn at a device is not worked on. Whoever waits does so by `waited_for`,
and the `Stopwatch` of the job, which its thread started, leaves that out. Whoever wants to know
that a turn has come, since much time may have gone by, is asked inside `at_each_turn`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Clock = Callable[[], float]
"""Seconds from some fixed point, never going back."""


def _nobody() -> None:
    pass


_watch: ContextVar["Stopwatch | None"] = ContextVar("watch", default=None)
_turn: ContextVar[Callable[[], None]] = ContextVar("turn", default=_nobody)


class Stopwatch:
    """Seconds of a job, less those it waited; to be started in the thread that works on it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waited = 0.0
        self.waits_since: float | None = None
        self._began = clock()
        _watch.set(self)

    def seconds(self) -> float:
        """Since the start; also to be asked by another thread."""
        since = self.waits_since
        return (self.clock() if since is None else since) - self._began - self.waited


@contextmanager
def at_each_turn(called: Callable[[], None]) -> Iterator[None]:
    """Inside, in this thread, `called` is called whenever a wait for a turn is over."""
    token = _turn.set(called)
    try:
        yield
    finally:
        _turn.reset(token)


@contextmanager
def waited_for(turn: AbstractContextManager[T]) -> Iterator[T]:
    """Inside, it is this thread's turn; what it waited until then is no time of its job's."""
    watch = _watch.get()
    with ExitStack() as stack:
        began = 0.0 if watch is None else watch.clock()
        if watch is not None:
            watch.waits_since = began
        try:
            given = stack.enter_context(turn)
        finally:
            if watch is not None:
                # In this order another thread that asks in between is told too little, and never
                # that the wait was work.
                watch.waited += watch.clock() - began
                watch.waits_since = None
        _turn.get()()
        yield given


def counts_as(seconds: float) -> None:
    """This thread's job was worked on for so long so far, elsewhere and by another clock."""
    watch = _watch.get()
    if watch is not None:
        watch.waited += watch.seconds() - seconds


class Meter:
    """Splits wall time into phases and the rest; `lap` closes the books of one trial.

    Args:
        clock: that it reads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()
        self._lap_began = clock()
        self._in_phases = 0.0
        self.last = 0.0

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Time what is done inside; its length is in `last` afterwards, also after an error."""
        began = self._clock()
        try:
            yield
        finally:
            self.last = self._clock() - began
            self._in_phases += self.last

    def lap(self) -> float:
        """Seconds outside all phases since the last lap."""
        now = self._clock()
        outside = now - self._lap_began - self._in_phases
        self._lap_began, self._in_phases = now, 0.0
        return max(0.0, outside)

    def total(self) -> float:
        """Wall time since the start, in seconds."""
        return self._clock() - self._began
