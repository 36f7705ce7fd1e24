"""What an executor is: it takes jobs, does some at once, and hands each back when it has ended.

A study decides and keeps books; an executor works. Between them are jobs, plain records, and what
came of them. Only the study writes the store, so a job that was done twice or half, by an executor
that died, harms nothing.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from archloop.proxy.record import Rung, TrainJob
from archloop.search.evaluator import Evaluator
from archloop.search.meter import Clock, Stopwatch
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled


class Measure(NamedTuple):
    """Measure a spec beside the reference, on every target.

    Attributes:
        look: 1, or a later one to add to the samples of those before.
        directory: for raw samples.
        processes: of each look at this spec; None takes the recipe's.
    """

    spec: StackSpec
    reference: StackSpec
    look: int
    directory: Path
    processes: int | None = None


class Train(NamedTuple):
    """Train and score a proxy.

    Attributes:
        directory: that it works in.
    """

    job: TrainJob
    directory: Path


Job = Measure | Train


class Ended(NamedTuple):
    """What came of a job.

    Attributes:
        ticket: that `submit` gave for it.
        value: its result; None when it failed.
        error: why it failed.
        seconds: wall time that it took, from when it had its device.
    """

    ticket: int
    value: Profiled | Rung | None
    error: Exception | None
    seconds: float


class Executor(ABC):
    """Does jobs by an evaluator.

    Args:
        evaluator: who measures and trains.
        clock: for the time that a job takes.

    Attributes:
        num_slots: jobs that are worked on at once; more may be submitted, and wait.
    """

    num_slots: int = 1

    def __init__(self, evaluator: Evaluator, clock: Clock) -> None:
        self.evaluator = evaluator
        self.clock = clock

    @abstractmethod
    def submit(self, job: Job) -> int:
        """Take a job; returns a ticket by which its end is known again.

        Done on this machine, it is done in the context that this is called in: who is told of
        waiting for a device here (`devices.lease.told_waiting`) is told of this job's.
        """

    @abstractmethod
    def wait(self) -> Ended:
        """Wait until any job has ended that was submitted and not yet handed back.

        Raises:
            BaseException: what is no `Exception`, such as KeyboardInterrupt, as it came.
        """

    @abstractmethod
    def cancel(self, ticket: int) -> None:
        """Give a job up: it never begins, or is ended where it stands, and is not handed back."""

    @abstractmethod
    def close(self) -> None:
        """Give up whatever was not handed back, and wait until nothing runs any more."""

    def _do(self, ticket: int, job: Job) -> Ended:
        """The job itself, by the evaluator."""
        watch = Stopwatch(self.clock)
        value: Profiled | Rung | None = None
        error: Exception | None = None
        try:
            if isinstance(job, Measure):
                size = () if job.processes is None else (job.processes,)
                arguments = (job.spec, job.reference, job.look, job.directory)
                value = self.evaluator.profile(*arguments, *size)
            else:
                value = self.evaluator.train(job.job, job.directory)
        except Exception as failure:
            error = failure
        return Ended(ticket, value, error, watch.seconds())
