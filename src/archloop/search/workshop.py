"""One measurement or training, done once: from its stage file, or by the evaluator.

What is on disk is never done again; what is not whole is thrown away and done afresh.
"""

import errno
import shutil
from typing import NamedTuple

from archloop.search.evaluator import CandidateFailed, Evaluator, TrainJob
from archloop.search.meter import Meter
from archloop.stack.spec import StackSpec
from archloop.store.folder import TrialFolder
from archloop.store.record import Rung
from archloop.store.stages import Profiled, Stage

_DISK_FULL = "No space left on device"


class Workshop(NamedTuple):
    """An evaluator with the clock that times it."""

    evaluator: Evaluator
    meter: Meter

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, files: TrialFolder
    ) -> Stage[Profiled]:
        """Profiles of a spec; look 2 adds to the samples of look 1."""
        name = files.profile(look)
        done = files.load(name, Profiled)
        if done is not None:
            return done
        with self.meter.stage():
            try:
                profiled = self.evaluator.profile(spec, reference, look, files.samples)
            except CandidateFailed as error:
                _blame_full_disk(error)
                raise
        return files.save(name, profiled, self.meter.last)

    def train(self, job: TrainJob, files: TrialFolder, name: str) -> Stage[Rung]:
        """A trained and scored proxy."""
        done = files.load(name, Rung)
        if done is not None:
            return done
        directory = files.work(name)
        with self.meter.stage():
            try:
                rung = self.evaluator.train(job, directory)
            except CandidateFailed as error:
                _blame_full_disk(error)
                raise
        stage = files.save(name, rung, self.meter.last)
        shutil.rmtree(directory, ignore_errors=True)
        return stage


def _blame_full_disk(error: CandidateFailed) -> None:
    """A worker that a full disk ended is nobody's fault but the machine's."""
    if _DISK_FULL in str(error):
        raise OSError(errno.ENOSPC, _DISK_FULL) from error
