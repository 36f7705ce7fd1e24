"""A run of a study that is to be over by some time, with as little lost as can be.

A job begins if the median of the latest of its like would have ended in time; what still runs when
the time is over is given up. Those that still run count too once they have taken longer than the
median of those that ended: else the quick ones alone, which end first, would foretell the slow. A
device that waits for the end is lost time as well, so a job that probably ends is begun; the same
command goes on from what is finished.
"""

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from archloop.search.meter import Clock, Stopwatch
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
        self._running: dict[Hashable, list[Stopwatch]] = {}
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

    def refuse_late(self, like: Hashable, spent: float = 0.0) -> None:
        """Let a job begin, or go on after it waited for its turn, or not.

        Args:
            like: equal for jobs that take about as long.
            spent: seconds that it has been worked on.

        Raises:
            OutOfTimeError: it would probably not end in time.
        """
        if self._end is None:
            return
        needed = max(0.0, self._needed(like) - spent)
        if self.is_over or self._clock() + needed > self._end:
            self._refused.set()
            raise OutOfTimeError("it would not end before the run's time is over")

    def _needed(self, like: Hashable) -> float:
        """Seconds that a job takes, as far as is known."""
        with self._lock:
            ended = list(self._latest.get(like, ()))
            running = [watch.seconds() for watch in self._running.get(like, ())]
        if not ended:
            return 0.0
        usual = median(ended)
        return median([*ended, *(seconds for seconds in running if seconds > usual)])

    @contextmanager
    def running(self, like: Hashable, watch: Stopwatch) -> Iterator[None]:
        """A job that is worked on inside; what it has taken so far says something of its like."""
        with self._lock:
            self._running.setdefault(like, []).append(watch)
        try:
            yield
        finally:
            with self._lock:
                self._running[like].remove(watch)

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
