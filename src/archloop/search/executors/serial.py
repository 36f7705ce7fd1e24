"""One job at a time, in the study's own thread, when it waits for it."""

from collections import deque
from contextvars import Context, copy_context

from archloop.search.evaluator import Evaluator
from archloop.search.executors.base import Ended, Executor, Job
from archloop.search.meter import Clock


class Serial(Executor):
    """Does a job when its end is waited for, the oldest first."""

    def __init__(self, evaluator: Evaluator, clock: Clock) -> None:
        super().__init__(evaluator, clock)
        self._queue: deque[tuple[int, Job, Context]] = deque()
        self._next = 0

    def submit(self, job: Job) -> int:
        """As `Executor.submit`."""
        self._queue.append((self._next, job, copy_context()))
        self._next += 1
        return self._next - 1

    def wait(self) -> Ended:
        """As `Executor.wait`."""
        assert self._queue, "nothing was submitted"
        ticket, job, context = self._queue.popleft()
        return context.run(self._do, ticket, job)

    def cancel(self, ticket: int) -> None:
        """As `Executor.cancel`."""
        self._queue = deque(entry for entry in self._queue if entry[0] != ticket)

    def close(self) -> None:
        """As `Executor.close`."""
        self._queue.clear()
