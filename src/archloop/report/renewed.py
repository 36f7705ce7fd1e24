"""A page written anew while its study runs, seldom enough to cost nothing that counts.

The study's own process writes it between two jobs, so that a measurement on the same machine has
nothing beside it; where several trials are under way at once, that cannot be had, and it is rare.
"""

import time
from collections.abc import Callable

FIRST_S = 60.0
"""A study that is over sooner has no page before its end."""
SHARE = 0.005
"""Of the study's time that writing the page may take."""


class Renewed:
    """Calls `write` when it is time to; a page that cannot be written is no study's fault.

    Args:
        write: the page, from the study's store.
        clock: seconds from some fixed point.
    """

    def __init__(
        self, write: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._due = clock() + FIRST_S

    def __call__(self) -> None:
        """Write the page if it is due."""
        began = self._clock()
        if began < self._due:
            return
        try:
            self._write()
        except OSError:
            # The last page, which `archloop search` ends with, says what is wrong.
            self._due = float("inf")
            return
        ended = self._clock()
        self._due = ended + max(FIRST_S, (ended - began) / SHARE)
