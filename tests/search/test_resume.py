"""Killed at any moment and run again, a study loses, repeats and re-measures nothing.

A stand-in for the work and a clock that stands still make records comparable: the killed and
resumed study must equal the uninterrupted one, trial by trial.
"""

import errno
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from archloop.search.deadline import OutOfTimeError
from archloop.search.errors import DiskFullError, StudyError
from archloop.search.evaluator import CandidateFailed
from archloop.search.recipe.recipe import Recipe, RecipeError
from archloop.search.study import Study
from archloop.store import connection, folder, identity, reading, stages
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, recipe

SHORT = recipe(num_trials=7)
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    folder = tmp_path_factory.mktemp("runs")
    return Study(SHORT, folder, evaluator=StandIn(), clock=no_time).run()


def run_study(runs: Path, log: Path, pause: float = 0.0) -> None:
    Study(SHORT, runs, evaluator=StandIn(log, pause), clock=no_time).run()


def check(runs: Path, log: Path, expected: StudyRecord, num_kills: int) -> None:
    """Equal, and no call was made for a stage whose file was there."""
    assert reading.read(runs / "test") == expected
    calls = log.read_text().splitlines()
    assert not [call for call in calls if "AGAIN" in call]
    repeated = sum(count - 1 for count in Counter(calls).values())
    assert repeated <= num_kills


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path, uninterrupted, seed):
    rng = random.Random(seed)
    began = time.monotonic()
    run_study(tmp_path / "rehearsal", tmp_path / "rehearsal.log", 0.01)
    whole_s = time.monotonic() - began
    log, num_kills = tmp_path / "log", 0
    for kill in range(7):
        process = fork.Process(target=run_study, args=(tmp_path, log, 0.01))
        process.start()
        process.join(rng.uniform(0.02, 0.3) * whole_s if kill < 6 else None)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        num_kills += 1
    assert process.exitcode == 0
    assert num_kills >= 2
    check(tmp_path, log, uninterrupted, num_kills)


def run_and_die(runs: Path, log: Path, at: int, when: str) -> None:
    """Run until the `at`-th durable write, and die just before or after it."""
    count = 0

    def wrap(function):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if count == at and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    stages.write_atomic = wrap(stages.write_atomic)
    folder.write_atomic = wrap(folder.write_atomic)
    storage = connection.RDBStorage
    for name in (
        "_create_new_trial",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "set_trial_state_values",
        "set_study_user_attr",
    ):
        setattr(storage, name, wrap(getattr(storage, name)))
    run_study(runs, log)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_every_kind_of_write(tmp_path, uninterrupted, when):
    log, kills, at = tmp_path / "log", 0, 1
    while True:
        process = fork.Process(target=run_and_die, args=(tmp_path, log, at, when))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        # The next run dies a little further in, so that all writes of a trial get their turn.
        at = 1 + kills % 12
        if kills > 12:
            at = 10**9
    assert kills >= 10
    check(tmp_path, log, uninterrupted, kills)


def test_interrupt_goes_on_where_it_stopped(tmp_path, uninterrupted):
    class Interrupted(StandIn):
        def _called(self, what, stage_file):
            super()._called(what, stage_file)
            if len(self.calls) == 9:
                raise KeyboardInterrupt

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        Study(SHORT, tmp_path, evaluator=Interrupted(log), clock=no_time).run()
    run_study(tmp_path, log)
    check(tmp_path, log, uninterrupted, 1)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_half_written_stage_is_done_again(tmp_path, keep):
    short = recipe(num_trials=2)
    study = Study(short, tmp_path, evaluator=StandIn(), clock=no_time)
    expected = study.run()
    kept = study.folder.rename(tmp_path / "kept")
    # A study killed in trial 0, whose profile was then cut short by other means.
    with pytest.raises(KeyboardInterrupt):
        Study(short, tmp_path, evaluator=_StopAtTraining(), clock=no_time).run()
    path = study.folder / "trials/000000/profile.json"
    content = path.read_bytes()
    assert content == (kept / "trials/000000/profile.json").read_bytes()
    path.write_bytes(content[:keep])
    assert Study(short, tmp_path, evaluator=StandIn(), clock=no_time).run() == expected


class _StopAtTraining(StandIn):
    def _called(self, what, stage_file):
        if "000000" in str(stage_file) and what.startswith("rung-0"):
            raise KeyboardInterrupt
        super()._called(what, stage_file)


def run_on_full_disk(runs: Path, after: int, result) -> None:
    """A disk that is full once `after` files were written; writes then fail half-way."""
    count = 0

    def full(function):
        def wrapped(path, content):
            nonlocal count
            count += 1
            if count > after:
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / f".{path.name}.half").write_bytes(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return function(path, content)

        return wrapped

    stages.write_atomic = full(stages.write_atomic)
    folder.write_atomic = full(folder.write_atomic)
    try:
        run_study(runs, runs / "log")
        result.put("finished")
    except DiskFullError as error:
        result.put(str(error))


@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_full_disk_is_one_line_and_goes_on(tmp_path, uninterrupted, after):
    results = fork.Queue()
    process = fork.Process(target=run_on_full_disk, args=(tmp_path, after, results))
    process.start()
    message = results.get(timeout=60)
    process.join()
    assert "no space left on device; free some and run the same command" in message
    assert "\n" not in message
    run_study(tmp_path, tmp_path / "log")
    check(tmp_path, tmp_path / "log", uninterrupted, 1)


def run_with_full_database(runs: Path, pages: int, result) -> None:
    """SQLite's own limit on pages makes it say that the disk is full."""
    connect = connection.sqlite3.connect

    def limited(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute(f"PRAGMA max_page_count={pages}")
        return connection

    connection.sqlite3.connect = limited
    try:
        run_study(runs, runs / "log")
        result.put("finished")
    except DiskFullError as error:
        result.put(str(error))


@pytest.mark.parametrize("more", [-10, 1])
def test_full_database_is_one_line_and_goes_on(tmp_path, uninterrupted, more):
    (tmp_path / "fresh").mkdir()
    card = identity.Card.new(SHORT.plain(), SHORT.digest)
    connection.open_database(tmp_path / "fresh", None, card).close()
    with closing(sqlite3.connect(tmp_path / "fresh" / folder.DATABASE)) as fresh:
        pages = fresh.execute("PRAGMA page_count").fetchone()[0] + more
    results = fork.Queue()
    process = fork.Process(target=run_with_full_database, args=(tmp_path, pages, results))
    process.start()
    message = results.get(timeout=60)
    process.join()
    assert "no space left on device" in message
    run_study(tmp_path, tmp_path / "log")
    check(tmp_path, tmp_path / "log", uninterrupted, 1)


def test_worker_ended_by_a_full_disk_is_not_the_trials_fault(tmp_path, uninterrupted):
    class Full(StandIn):
        def _called(self, what, stage_file):
            if len(self.calls) == 8:
                self.fails = what
            try:
                super()._called(what, stage_file)
            except Exception as error:
                raise type(error)("training: disk: Disk quota exceeded on box", "disk") from error

    with pytest.raises(DiskFullError, match="quota exceeded on box; free some space there"):
        Study(SHORT, tmp_path, evaluator=Full(), clock=no_time).run()
    assert Study(SHORT, tmp_path, evaluator=StandIn(), clock=no_time).run() == uninterrupted


def test_a_device_that_is_gone_for_good_ends_the_run_and_not_all_trials_that_are_left(tmp_path):
    class Unplugged(StandIn):
        def profile(self, *arguments):
            # The reference and its anchors took twelve calls.
            if len(self.calls) >= 14:
                raise CandidateFailed("profiling: gone: the cable is out", "gone")
            return super().profile(*arguments)

    with pytest.raises(StudyError, match="the cable is out; 3 jobs in a row ended so: bring"):
        Study(SHORT, tmp_path, evaluator=Unplugged(), clock=no_time).run()
    told = [trial.state for trial in reading.read(tmp_path / "test").trials]
    assert told.count("failed") == 2
    record = Study(SHORT, tmp_path, evaluator=StandIn(), clock=no_time).run()
    states = [trial.state for trial in record.trials]
    assert (len(states), states.count("failed")) == (7, 2)


def test_lock_ends_with_its_process(tmp_path):
    process = fork.Process(target=run_study, args=(tmp_path, tmp_path / "log", 0.2))
    process.start()
    while not (tmp_path / "test" / "study.db").exists():
        time.sleep(0.01)
    with pytest.raises(ValueError, match=f"process {process.pid} is running this study"):
        run_study(tmp_path, tmp_path / "log")
    process.kill()
    process.join()
    run_study(tmp_path, tmp_path / "log")


def test_goes_on_under_an_archloop_whose_recipes_have_more_keys(tmp_path, monkeypatch):
    plain = Recipe.plain

    def earlier(self: Recipe) -> dict[str, Any]:
        settings = plain(self)
        del settings["until_still"], settings["profile"]["repeats"]
        return settings

    log = tmp_path / "log"
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "plain", earlier)
        with pytest.raises(OutOfTimeError):
            Study(SHORT, tmp_path, evaluator=StandIn(log, 0.05)).run(minutes=0.02)
        done = log.read_text().splitlines()
    assert len(done) > 2
    other = [{"profile": {"repeats": 1}}, {"until_still": 9}, {"seed": 5}]
    for changes in other:
        with pytest.raises(RecipeError, match=r"repeats is 1|until_still is 9|seed is 5 and was 4"):
            Study(recipe(num_trials=7, **changes), tmp_path, evaluator=StandIn()).run()
    record = Study(SHORT, tmp_path, evaluator=StandIn(log)).run()
    assert len(record.trials) >= 7
    calls = log.read_text().splitlines()
    assert len(calls) > len(done)
    assert max(Counter(calls).values()) == 1
