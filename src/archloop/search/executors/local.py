"""Several jobs at once on this machine: a thread waits for each, a process of its own does it.

The threads only wait: every measurement and every training is a process that the evaluator starts.
Which jobs must not run at the same time is settled by the devices' leases, not here.
"""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from archloop.search.evaluator import Evaluator
from archloop.search.executors.base import Ended, Executor, Job
from archloop.search.meter import Clock
from archloop.workers.cancelling import cancelled_by


class Local(Executor):
    """Does several jobs at once.

    Args:
        evaluator: must allow calls from several threads.
        clock: likewise.
        workers: jobs at once.
    """

    def __init__(self, evaluator: Evaluator, clock: Clock, workers: int) -> None:
        super().__init__(evaluator, clock)
        self.num_slots = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="archloop-job")
        self._running: dict[int, tuple[Future[Ended], threading.Event]] = {}
        self._next = 0

    def submit(self, job: Job) -> int:
        """As `Executor.submit`."""
        ticket, stop = self._next, threading.Event()
        self._next += 1

        def work() -> Ended:
            with cancelled_by(stop):
                return self._do(ticket, job)

        # In the submitter's context, so that whoever is told of waiting there is told here too.
        self._running[ticket] = self._pool.submit(copy_context().run, work), stop
        return ticket

    def wait(self) -> Ended:
        """As `Executor.wait`."""
        assert self._running, "nothing was submitted"
        futures = {future: ticket for ticket, (future, _) in self._running.items()}
        done, _ = wait(futures, return_when=FIRST_COMPLETED)
        # Where several jobs have ended, the one submitted first is reported first: a set's order
        # would differ from run to run.
        first = min(done, key=lambda future: futures[future])
        del self._running[futures[first]]
        return first.result()

    def cancel(self, ticket: int) -> None:
        """As `Executor.cancel`."""
        future, stop = self._running.pop(ticket)
        stop.set()
        if not future.cancel():
            wait([future])

    def close(self) -> None:
        """As `Executor.close`."""
        for future, stop in self._running.values():
            stop.set()
            future.cancel()
        self._running.clear()
        self._pool.shutdown(wait=True)
