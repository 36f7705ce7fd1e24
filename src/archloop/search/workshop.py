"""Measurements and trainings, each done once: from its stage file, or by the executor.

What is on disk is never done again; what is not whole is thrown away and done afresh. Results are
written here, in the study's own process, when the executor hands them back.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

from archloop.devices.lease import Listener, told_waiting
from archloop.proxy.record import Rung, TrainJob
from archloop.search.errors import DiskFullError, StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.executors.base import Ended, Executor, Job, Measure, Train
from archloop.search.meter import Meter
from archloop.stack.spec import StackSpec
from archloop.store.folder import TrialFolder
from archloop.store.stages import Profiled, Stage

MOST_LOST = 3
"""Jobs in a row that may be lost with their device; the last of them is no trial's fault."""


class Training(NamedTuple):
    """A training that is wanted: what to do, and the stage that it is."""

    job: TrainJob
    files: TrialFolder
    name: str


class Workshop:
    """An executor with the clock that times waiting for it.

    Args:
        executor: that does the jobs.
        meter: the clock.
        listener: makes, for a job that begins now, who is told when it waits for a device.
    """

    def __init__(self, executor: Executor, meter: Meter, listener: Callable[[], Listener]) -> None:
        self.executor = executor
        self.meter = meter
        self._listener = listener
        self._num_lost = 0

    def submit(self, job: Job) -> int:
        """Have a job done; its ticket is in what `wait` answers."""
        with told_waiting(self._listener()):
            return self.executor.submit(job)

    def wait(self) -> Ended:
        """The next job that has ended, however it did.

        Raises:
            DiskFullError: a full disk ended it, here or on a device, which is no stack's fault.
            StudyError: several in a row were lost with their device, which is none either.
        """
        with self.meter.phase():
            ended = self.executor.wait()
        if isinstance(ended.error, CandidateFailed) and ended.error.cause == "disk":
            raise DiskFullError(
                f"{ended.error}; free some space there and run the same command: it goes on where "
                "it stopped"
            ) from ended.error
        self._count_lost(ended)
        return ended

    def _count_lost(self, ended: Ended) -> None:
        """End the run once a device is gone for good.

        One lost job may be its stack's doing, and marks its trial. Of a phone that is unplugged all
        others would be lost as well, within seconds each, and their stacks never tried again.
        """
        if ended.error is None:
            self._num_lost = 0
        elif isinstance(ended.error, CandidateFailed) and ended.error.cause == "gone":
            self._num_lost += 1
            if self._num_lost >= MOST_LOST:
                raise StudyError(
                    f"{ended.error}; {MOST_LOST} jobs in a row ended so: bring the device back and "
                    "run the same command: it goes on where it stopped"
                ) from ended.error

    def keep(self, files: TrialFolder, name: str, ended: Ended) -> Stage[Profiled] | Stage[Rung]:
        """Write what came of a job as a stage."""
        value, seconds = ended.value, ended.seconds
        if isinstance(value, Profiled):
            return files.save(name, value, seconds)
        assert value is not None
        stage = files.save(name, value, seconds)
        shutil.rmtree(files.work(name), ignore_errors=True)
        return stage

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, files: TrialFolder
    ) -> Stage[Profiled]:
        """Profiles of a spec, waited for.

        Raises:
            CandidateFailed: the measurement came to no result.
        """
        name = files.profile(look)
        done = files.load(name, Profiled)
        if done is None:
            self.submit(Measure(spec, reference, look, files.samples))
            self.keep(files, name, _whole(self.wait()))
            done = files.load(name, Profiled)
        assert done is not None
        return done

    def train(self, wanted: Sequence[Training]) -> list[Stage[Rung]]:
        """Trained and scored proxies, as many at once as the executor does, in the given order.

        Raises:
            CandidateFailed: a training came to no result; those that had, are kept.
        """
        missing = [each for each in wanted if each.files.load(each.name, Rung) is None]
        tickets = {
            self.submit(Train(job, files.work(name))): (files, name) for job, files, name in missing
        }
        failed = None
        while tickets:
            ended = self.wait()
            files, name = tickets.pop(ended.ticket)
            if ended.error is None:
                self.keep(files, name, ended)
            else:
                failed = failed or ended.error
        if failed is not None:
            # The error is raised once every job has ended: a caller that goes on without these jobs
            # would otherwise receive the ends of the rest.
            raise failed
        stages = [files.load(name, Rung) for _, files, name in wanted]
        return [stage for stage in stages if stage is not None]


def _whole(ended: Ended) -> Ended:
    if ended.error is not None:
        raise ended.error
    return ended
