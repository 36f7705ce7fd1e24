"""Giving up what a thread waits for: whoever waits inside asks, now and then, whether to go on.

A thread cannot be interrupted from outside as the main one can by a signal. So what runs in a
thread runs under an event, and each place that may wait for long looks at it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLL_S = 0.2
"""Longest wait between two looks."""

_events: ContextVar[tuple[threading.Event, ...]] = ContextVar("cancelled_by", default=())


class CancelledError(RuntimeError):
    """What was waited for is not wanted any more."""


@contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Whatever this thread waits for inside is given up once the event is set, or one outside."""
    token = _events.set((*_events.get(), event))
    try:
        yield
    finally:
        _events.reset(token)


def is_cancelled() -> bool:
    """Whether this thread is to give up."""
    return any(event.is_set() for event in _events.get())


def check() -> None:
    """Give up if this thread is to.

    Raises:
        CancelledError: it is.
    """
    if is_cancelled():
        raise CancelledError("given up")
