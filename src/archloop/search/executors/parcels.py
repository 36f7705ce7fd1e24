"""A job that travels: all that it needs as data, and all that comes of it, with no path between.

Whoever works elsewhere shares no folder with the study. So the files that a job reads (a
checkpoint, the samples of an earlier look) travel with it, and those that it leaves come back with
its result; where they lie on either side is that side's own matter.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from archloop.files import write_atomic
from archloop.proxy.record import Rung, TrainJob
from archloop.scratch import Scratch
from archloop.search.evaluator import CandidateFailed, Evaluator, Unsupported
from archloop.search.meter import Stopwatch
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from archloop.workers.deaths import Cause

Files = Mapping[str, bytes]
"""Contents by path within a folder."""
_CHECKPOINT, _WEIGHTS, _RESUMED, _WORK = "checkpoint", "weights", "resumed", "work"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measuring(_Message):
    """As `executors.base.Measure`."""

    spec: StackSpec
    reference: StackSpec
    look: int
    processes: int | None = None


class Training(_Message):
    """As `executors.base.Train`; its paths are those of the side that sends it."""

    job: TrainJob


class Outcome(_Message):
    """What came of a job: a result, or why there is none.

    Attributes:
        failed: message of a `CandidateFailed`.
        unsupported: it was an `Unsupported`.
        seconds: that it was worked on.
    """

    profiled: Profiled | None = None
    rung: Rung | None = None
    failed: str | None = None
    cause: Cause = "crash"
    unsupported: bool = False
    seconds: float


class Parcel(NamedTuple):
    """A message as JSON, with files."""

    message: str
    files: Files


def packed(folder: Path) -> Files:
    """All files of a folder; none where there is none."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def unpack(files: Files, folder: Path) -> None:
    """Write files into a folder, each whole or not at all."""
    for name, content in files.items():
        place = folder / name
        assert place.resolve().is_relative_to(folder.resolve()), name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, content)


def to_measure(
    spec: StackSpec,
    reference: StackSpec,
    look: int,
    directory: Path,
    processes: int | None = None,
) -> Parcel:
    """A measurement, with the samples of the looks before."""
    asked = Measuring(spec=spec, reference=reference, look=look, processes=processes)
    return Parcel(asked.model_dump_json(), packed(directory))


def to_train(job: TrainJob) -> Parcel:
    """A training, with the checkpoint that it continues."""
    files = {} if job.resume_from is None else {_RESUMED: job.resume_from.read_bytes()}
    return Parcel(Training(job=job).model_dump_json(), files)


def do_measure(evaluator: Evaluator, parcel: Parcel) -> Parcel:
    """Where the work is done: measure, and pack what came of it."""
    asked = Measuring.model_validate_json(parcel.message)
    with Scratch("job") as scratch:
        directory = Path(scratch) / "samples"
        unpack(parcel.files, directory)
        watch = Stopwatch(time.monotonic)
        try:
            size = () if asked.processes is None else (asked.processes,)
            arguments = (asked.spec, asked.reference, asked.look, directory)
            found = evaluator.profile(*arguments, *size)
            outcome = Outcome(profiled=found, seconds=watch.seconds())
        except CandidateFailed as error:
            outcome = _failed(error, watch.seconds())
        return Parcel(outcome.model_dump_json(), packed(directory))


def do_train(evaluator: Evaluator, parcel: Parcel) -> Parcel:
    """Where the work is done: train, and pack what came of it."""
    job = Training.model_validate_json(parcel.message).job
    with Scratch("job") as scratch:
        here = Path(scratch) / "parcel"
        here.mkdir()
        unpack(parcel.files, here)
        given = {"resume_from": _RESUMED, "checkpoint_to": _CHECKPOINT, "weights_to": _WEIGHTS}
        moved = {key: here / name for key, name in given.items() if getattr(job, key) is not None}
        watch = Stopwatch(time.monotonic)
        try:
            rung = evaluator.train(job.model_copy(update=moved), here / _WORK)
            outcome = Outcome(rung=rung, seconds=watch.seconds())
        except CandidateFailed as error:
            outcome = _failed(error, watch.seconds())
        (here / _RESUMED).unlink(missing_ok=True)
        return Parcel(outcome.model_dump_json(), packed(here))


def measured(parcel: Parcel, directory: Path) -> tuple[Profiled, float]:
    """On the study's side: the result of a measurement and its seconds; samples into a folder.

    Raises:
        CandidateFailed: as the evaluator's.
    """
    unpack(parcel.files, directory)
    outcome = _succeeded(parcel)
    assert outcome.profiled is not None
    return outcome.profiled, outcome.seconds


def trained(parcel: Parcel, job: TrainJob, directory: Path) -> tuple[Rung, float]:
    """On the study's side: the result of a training and its seconds; files where the job says.

    Raises:
        CandidateFailed: as the evaluator's.
    """
    unpack(_below(parcel.files, _WORK), directory)
    outcome = _succeeded(parcel)
    if job.checkpoint_to is not None and _CHECKPOINT in parcel.files:
        write_atomic(job.checkpoint_to, parcel.files[_CHECKPOINT])
    if job.weights_to is not None and (weights := _below(parcel.files, _WEIGHTS)):
        shutil.rmtree(job.weights_to, ignore_errors=True)
        unpack(weights, job.weights_to)
    assert outcome.rung is not None
    return outcome.rung, outcome.seconds


def _failed(error: CandidateFailed, seconds: float) -> Outcome:
    unsupported = isinstance(error, Unsupported)
    return Outcome(failed=str(error), cause=error.cause, unsupported=unsupported, seconds=seconds)


def _succeeded(parcel: Parcel) -> Outcome:
    outcome = Outcome.model_validate_json(parcel.message)
    if outcome.failed is not None:
        raise (Unsupported if outcome.unsupported else CandidateFailed)(
            outcome.failed, outcome.cause
        )
    return outcome


def _below(files: Files, folder: str) -> Files:
    """The files of a folder among others."""
    inside = f"{folder}/"
    return {name.removeprefix(inside): f for name, f in files.items() if name.startswith(inside)}
