"""A run of a study that is to be over by some time, with as little lost as can be.

A job begins if the median of the latest of its like would have ended in time; what still runs when
the time is over is given up. A device that waits for the end is lost time as well, so a job that
probably ends is begun; the same command goes on from what is finished.
"""

import threading
from collections import deque
from collections.abc import Hashable
from contextlib import AbstractContextManager
from statistics import median

from archloop.search.meter import Clock
from archloop.workers.cancelling import cancelled_by

_LATEST = 8
"""Jobs of a kind whose median foretells the next: the first ones may have compiled kernels."""


class OutOfTimeError(Exception):
    """A job did not begin, or was given up, for want of time; the next run does it."""


class Deadline:
    """When a run is to be over; to be used by several threads.

    Args:
        clock: of the run.
        seconds: from now; None for a run without an end of its own.
    """

    def __init__(self, clock: Clock, seconds: float | None = None) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self._latest: dict[Hashable, deque[float]] = {}
        self._lock = threading.Lock()
        self._over, self._refused = threading.Event(), threading.Event()
        self._timer: threading.Timer | None = None
        if seconds is not None:
            self._timer = threading.Timer(seconds, self._over.set)
            self._timer.daemon = True
            self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether whatever still runs is given up."""
        return self._over.is_set()

    @property
    def is_near(self) -> bool:
        """Whether a job did not begin, or was given up: then nothing new is to begin either."""
        return self._refused.is_set() or self.is_over

    def refuse_late(self, like: Hashable) -> None:
        """Let a job begin, or not.

        Args:
            like: equal for jobs that take about as long.

        Raises:
            OutOfTimeError: it would probably not end in time.
        """
        if self._end is None:
            return
        with self._lock:
            needed = median(self._latest.get(like, (0.0,)))
        if self.is_over or self._clock() + needed > self._end:
            self._refused.set()
            raise OutOfTimeError("it would not end before the run's time is over")

    def took(self, like: Hashable, seconds: float) -> None:
        """A job has ended that took so long."""
        with self._lock:
            self._latest.setdefault(like, deque(maxlen=_LATEST)).append(seconds)

    def given_up_then(self) -> AbstractContextManager[None]:
        """Whatever this thread waits for inside is given up when the time is over."""
        return cancelled_by(self._over)

    def close(self) -> None:
        """The run is over."""
        if self._timer is not None:
            self._timer.cancel()
