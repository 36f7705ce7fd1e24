"""Two trials at once: nothing is lost or repeated, and what a proposal knew is kept with it."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from archloop.devices import lease as leases
from archloop.devices.choice import DeviceChoice
from archloop.proxy.record import TrainJob
from archloop.search import plan, telling
from archloop.search.base import Pending
from archloop.search.executors.base import Train
from archloop.search.executors.local import Local
from archloop.search.executors.serial import Serial
from archloop.search.study import Study
from archloop.space.genome import Genome
from archloop.store import reading
from archloop.store.connection import open_for_reading
from archloop.store.reference_run import ReferenceRun
from archloop.workers.cancelling import CancelledError, cancelled_by, is_cancelled
from archloop.workers.messages import Hello
from archloop.workers.process import WorkerProcess
from report import studies
from search.stand_in import StandIn, no_time, recipe

fork = multiprocessing.get_context("fork")
SHORT = recipe(num_trials=8, budgets=[], executor={"workers": 2})


class Counting(StandIn):
    """A stand-in that knows how many calls it was in at once."""

    def __init__(self, log: Path | None = None, pause: float = 0.02) -> None:
        super().__init__(log, pause)
        self.most, self.now, self.lock = 0, 0, threading.Lock()

    def _called(self, what, stage_file):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            super()._called(what, stage_file)
        finally:
            with self.lock:
                self.now -= 1


def test_trials_overlap_and_all_end(tmp_path):
    evaluator = Counting()
    record = Study(SHORT, tmp_path, evaluator=evaluator, clock=no_time).run()
    assert evaluator.most == 2
    assert [trial.number for trial in record.trials] == list(range(8))
    assert {trial.state for trial in record.trials} == {"complete"}
    digests = [trial.spec.digest for trial in record.trials if trial.replicates is None]
    assert len(set(digests)) == len(digests)
    assert not [call for call in evaluator.calls if "AGAIN" in call]
    assert sum(t.hypervolume_gain or 0.0 for t in record.trials) > 0


def test_each_proposal_follows_from_what_is_kept_with_it(tmp_path):
    Study(SHORT, tmp_path, evaluator=Counting(), clock=no_time).run()
    database = open_for_reading(tmp_path / "test", None, "test")
    reference_run = ReferenceRun.model_validate(database.attribute("reference_run"))
    trials = {stored.number: stored for stored in database.trials()}
    database.close()
    resolved = plan.resolve(SHORT)
    resolved.strategy.worst = {name: r.mean for name, r in reference_run.worst.values.items()}
    genomes = {n: Genome.model_validate(t.candidate.genome) for n, t in trials.items()}
    late = 0
    for number, stored in trials.items():
        told = [telling.Finished(trials[n], genomes[n], trials[n].outcome) for n in stored.told]
        pending = [n for n in range(number) if n not in stored.told]
        late += bool(pending)
        proposal = resolved.strategy.ask(
            number,
            SHORT.seed,
            telling.tell(told, reference_run.noise, telling.limits(SHORT.budgets, {})),
            [Pending(n, genomes[n], trials[n].candidate.replicates) for n in pending],
        )
        assert resolved.candidate(proposal) == stored.candidate
    assert late >= 4


def run_study(runs: Path, log: Path, pause: float) -> None:
    Study(SHORT, runs, evaluator=StandIn(log, pause), clock=no_time).run()


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_resumed_every_stage_is_found_again(tmp_path, seed):
    rng = random.Random(seed)
    began = time.monotonic()
    run_study(tmp_path / "rehearsal", tmp_path / "rehearsal.log", 0.02)
    whole_s = time.monotonic() - began
    log, num_kills = tmp_path / "log", 0
    for kill in range(6):
        process = fork.Process(target=run_study, args=(tmp_path, log, 0.02))
        process.start()
        process.join(rng.uniform(0.05, 0.4) * whole_s if kill < 5 else None)
        if process.exitcode is not None:
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        num_kills += 1
    assert process.exitcode == 0
    assert num_kills >= 2
    record = reading.read(tmp_path / "test")
    assert {trial.state for trial in record.trials} == {"complete"}
    assert len(record.trials) == 8
    calls = log.read_text().splitlines()
    assert not [call for call in calls if "AGAIN" in call]
    # A kill may cost each of the two jobs that were under way, and nothing else.
    assert sum(count - 1 for count in Counter(calls).values()) <= 2 * num_kills


def test_one_at_a_time_and_two_at_once_may_take_turns_on_a_study(tmp_path):
    class Stopped(StandIn):
        def _called(self, what, stage_file):
            super()._called(what, stage_file)
            if len(self.calls) == 12:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study(SHORT, tmp_path, evaluator=Stopped(), clock=no_time).run()
    alone = recipe(num_trials=8, budgets=[])
    record = Study(alone, tmp_path, evaluator=StandIn(), clock=no_time).run()
    assert {trial.state for trial in record.trials} == {"complete"}


def test_specs_without_genomes_are_tried_as_they_are(tmp_path):
    specs = [studies.spec(pattern) for pattern in ("CACA", "CCCA", "AAAA")]
    given = recipe(num_trials=5, budgets=[], initial=[], specs=[s.model_dump() for s in specs])
    record = Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    assert [trial.spec for trial in record.trials[:3]] == specs
    assert [trial.genome is None for trial in record.trials] == [True] * 3 + [False] * 2
    assert {trial.state for trial in record.trials} == {"complete"}
    assert all(t.proxy_spec.d_model == 64 for t in record.trials)
    evaluator = StandIn()
    assert Study(given, tmp_path, evaluator=evaluator, clock=no_time).run() == record
    assert evaluator.calls == ["close"]


# --- executors ----------------------------------------------------------------------------------


class Waiting(StandIn):
    """Trainings take until they are cancelled."""

    def train(self, job, directory):
        self.calls.append(directory.name)
        while not is_cancelled():
            time.sleep(0.01)
        raise CancelledError("given up")


def job(name: str) -> Train:
    spec = studies.spec("C")
    return Train(TrainJob(spec=spec, num_steps=1, seed=0), Path(name))


def test_cancelled_jobs_end_and_are_not_handed_back():
    evaluator = Waiting()
    executor = Local(evaluator, no_time, workers=2)
    tickets = [executor.submit(job(name)) for name in "abc"]
    while len(evaluator.calls) < 2:
        time.sleep(0.01)
    executor.cancel(tickets[2])
    executor.cancel(tickets[0])
    executor.close()
    assert evaluator.calls == ["a", "b"]


@pytest.mark.parametrize("kind", [Serial, lambda *given: Local(*given, workers=3)])
def test_every_job_is_handed_back_once(kind):
    executor = kind(StandIn(), no_time)
    tickets = {executor.submit(job(name)) for name in "abcd"}
    ended = [executor.wait() for _ in tickets]
    assert {each.ticket for each in ended} == tickets
    assert all(each.value is not None and each.error is None for each in ended)
    executor.close()


def test_a_worker_process_is_given_up(tmp_path):
    host = DeviceChoice().open()
    python = host.python_argv()
    assert python is not None
    worker = WorkerProcess(
        host,
        [*python, "-c", "import time; time.sleep(60)"],
        tmp_path / "log",
        threads=1,
        time_limit_s=60,
    )
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    began = time.monotonic()
    try:
        with cancelled_by(stop), pytest.raises(CancelledError):
            worker.ask(Hello(time_limit_s=60))
    finally:
        worker.kill()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_waits_for_a_device_is_told_by_its_number(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(leases, "TELL_AFTER_S", 0.02)
    waits: list[tuple[int | None, str]] = []

    class Measuring(StandIn):
        def _called(self, what, stage_file):
            if stage_file.name != "profile.json" or stage_file.parent.name != "000001":
                super()._called(what, stage_file)
                return
            with ExitStack() as other:
                # Another job has the device until the wait for it was told.
                other.enter_context(leases.lease("host", alone=True, folder=tmp_path))
                release = threading.Thread(target=free, args=(other.pop_all(),))
                release.start()
                with leases.lease("host", alone=True, folder=tmp_path):
                    super()._called(what, stage_file)
                release.join()

    def free(stack):
        while not waits:
            time.sleep(0.01)
        stack.close()

    def listen(event):
        if event.waits_for is not None:
            waits.append((event.trial, event.waits_for))

    study = recipe(num_trials=4, budgets=[], executor={"workers": workers})
    Study(study, tmp_path, evaluator=Measuring(), clock=no_time).run(listen)
    assert waits == [(1, "host, which another job of this process uses"), (1, "")]
