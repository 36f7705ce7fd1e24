"""Where the time goes: wall time by stage, and what the main process spends besides."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]
"""Seconds from some fixed point, never going back."""


class Meter:
    """Splits wall time into stages and the rest; `lap` closes the books of one trial."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lap_began = clock()
        self._in_stages = 0.0
        self.last = 0.0

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Time what is done inside; its length is in `last` afterwards, also after an error."""
        began = self._clock()
        try:
            yield
        finally:
            self.last = self._clock() - began
            self._in_stages += self.last

    def lap(self) -> float:
        """Seconds outside all stages since the last lap."""
        now = self._clock()
        outside = now - self._lap_began - self._in_stages
        self._lap_began, self._in_stages = now, 0.0
        return max(0.0, outside)
