"""A run that is to be over by some time: it begins nothing too late, and the next one goes on."""

import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from archloop.proxy.record import TrainJob
from archloop.search.deadline import Deadline, OutOfTimeError
from archloop.search.executors.base import Train
from archloop.search.executors.serial import Serial
from archloop.search.meter import Stopwatch, waited_for
from archloop.search.study import Study
from archloop.workers import cancelling
from profiling.samples import SPEC
from search.stand_in import StandIn, recipe


class Clock:
    """Goes on only as work is done."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(StandIn):
    """Each measurement takes 7 s of a clock, each training as many as it has steps."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.ends = clock, []

    def train(self, job, directory):
        self.clock.now += job.num_steps - 7
        return super().train(job, directory)

    def _called(self, what, stage_file):
        self.clock.now += 7
        self.ends.append(self.clock.now)
        super()._called(what, stage_file)


class Hanging(StandIn):
    """Never ends by itself, but gives up as workers do."""

    def train(self, job, directory):
        while True:
            time.sleep(0.01)
            cancelling.check()


def results(record):
    return [(t.number, t.state, t.spec.digest, t.objectives) for t in record.trials]


def test_a_job_begins_only_if_its_like_would_have_ended():
    clock = Clock()
    deadline = Deadline(clock, 100)
    try:
        deadline.refuse_late("long")
        deadline.took("long", 60)
        clock.now = 39
        deadline.refuse_late("long")
        assert not deadline.is_near
        clock.now = 41
        deadline.refuse_late("short")
        with pytest.raises(OutOfTimeError):
            deadline.refuse_late("long")
        assert deadline.is_near
        for seconds in (70, 58, 20, 30):
            deadline.took("long", seconds)
        # Half of them would have ended.
        deadline.refuse_late("long")
        for _ in range(8):
            deadline.took("long", 20)
        clock.now = 79
        # Those that compiled kernels are forgotten.
        deadline.refuse_late("long")
        clock.now = 101
        with pytest.raises(OutOfTimeError):
            deadline.refuse_late("never seen")
    finally:
        deadline.close()


def test_jobs_that_still_run_foretell_the_next_where_only_quick_ones_have_ended():
    clock = Clock()
    deadline = Deadline(clock, 1000)
    try:
        watches = [Stopwatch(clock) for _ in range(3)]
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(deadline.running("training", watch))
            deadline.took("training", 40)
            deadline.took("training", 50)
            clock.now = 700
            # One has waited for its turn since 10 s after the start.
            watches[2].waits_since = 10
            deadline.refuse_late("training", spent=80)
            with pytest.raises(OutOfTimeError):
                # The median of 40, 50, 700 and 700.
                deadline.refuse_late("training")
        # What began and was given up tells nothing later.
        deadline.refuse_late("training")
    finally:
        deadline.close()


def test_a_job_whose_turn_comes_too_late_does_not_begin():
    clock, worked = Clock(), []

    @contextmanager
    def turn():
        clock.now += 70
        yield

    class Queueing(StandIn):
        def train(self, job, directory):
            with waited_for(turn()):
                worked.append(job)
                return super().train(job, directory)

    executor = Serial(Queueing(), clock)
    executor.deadline = Deadline(clock, 100)
    try:
        job = Train(TrainJob(spec=SPEC, num_steps=5, seed=0), Path("unused"))
        executor.deadline.took(("train", 0, 5), 40)
        executor.submit(job)
        assert isinstance(executor.wait().error, OutOfTimeError)
        assert not worked
        assert executor.deadline.is_near
    finally:
        executor.deadline.close()


def test_without_a_deadline_nothing_is_refused():
    deadline = Deadline(Clock())
    deadline.took("long", 1e12)
    deadline.refuse_late("long")
    assert not deadline.is_near


@pytest.mark.parametrize("executor", [{}, {"workers": 2}])
def test_a_study_in_parts_is_the_study_at_once(tmp_path, executor):
    asked = recipe(num_trials=8, executor=executor)
    clock, runs = Clock(), 0
    evaluator = Ticking(clock)
    while True:
        runs += 1
        end = clock.now + 120
        try:
            record = Study(asked, tmp_path / "parts", evaluator=evaluator, clock=clock).run(
                minutes=2
            )
            break
        except OutOfTimeError:
            # What begins without a like of it is not foretold; that is the first of each kind.
            assert evaluator.ends[-1] < end + 40
    assert runs > 2
    calls = [call for call in evaluator.calls if call != "close"]
    assert max(Counter(calls).values()) == 1
    assert not [call for call in calls if "AGAIN" in call]
    if not executor:
        whole = Study(asked, tmp_path / "whole", evaluator=StandIn()).run()
        assert results(record) == results(whole)


@pytest.mark.parametrize("executor", [{}, {"workers": 2}])
def test_what_still_runs_is_given_up(tmp_path, executor):
    asked = recipe(num_trials=3, executor=executor)
    began = time.monotonic()
    with pytest.raises(OutOfTimeError):
        Study(asked, tmp_path, evaluator=Hanging()).run(minutes=0.01)
    assert time.monotonic() - began < 10
    record = Study(asked, tmp_path, evaluator=StandIn()).run(minutes=60)
    assert {trial.state for trial in record.trials} <= {"complete", "rejected"}
