"""What an executor is: it takes jobs, does some at once, and hands each back when it has ended.

A study decides and keeps books; an executor works. Between them are jobs, plain records, and what
came of them. Only the study writes the store, so a job that was done twice or half, by an executor
that died, harms nothing.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from archloop.devices.lease import LeaseCancelledError
from archloop.proxy.record import Rung, TrainJob
from archloop.search.deadline import Deadline, OutOfTimeError
from archloop.search.evaluator import Evaluator
from archloop.search.meter import Clock, Stopwatch, at_each_turn
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.workers.cancelling import CancelledError


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
        error: why it failed; `OutOfTimeError` if the run's time did not allow for it.
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
        deadline: of the run; none unless set.
    """

    num_slots: int = 1

    def __init__(self, evaluator: Evaluator, clock: Clock) -> None:
        self.evaluator = evaluator
        self.clock = clock
        self.deadline = Deadline(clock)

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
        """The job itself, by the evaluator, if the run's time allows for it."""
        watch, like = Stopwatch(self.clock), _like(job)
        value: Profiled | Rung | None = None
        error: Exception | None = None
        try:
            self.deadline.refuse_late(like)
            with (
                self.deadline.given_up_then(),
                self.deadline.running(like, watch),
                at_each_turn(lambda: self.deadline.refuse_late(like, watch.seconds())),
            ):
                value = self._value(job)
            self.deadline.took(like, watch.seconds())
        except (CancelledError, LeaseCancelledError) as failure:
            error = OutOfTimeError("given up") if self.deadline.is_over else failure
        except Exception as failure:
            error = failure
        return Ended(ticket, value, error, watch.seconds())

    def _value(self, job: Job) -> Profiled | Rung:
        if isinstance(job, Train):
            return self.evaluator.train(job.job, job.directory)
        size = () if job.processes is None else (job.processes,)
        return self.evaluator.profile(job.spec, job.reference, job.look, job.directory, *size)


def _like(job: Job) -> tuple[object, ...]:
    """Equal for jobs that take about as long."""
    if isinstance(job, Measure):
        return ("measure", job.processes)
    return ("train", job.job.rung, job.job.num_steps)
