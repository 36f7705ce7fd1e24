"""One study, one recipe, one process: what an external database and a folder know of each other."""

import hashlib
import json
import multiprocessing
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from archloop.errors import UserError
from archloop.report import html
from archloop.search.study import Study
from archloop.store import reading
from archloop.store.lock import StudyBusyError, exclusive_in
from search.stand_in import StandIn, no_time, recipe
from store import postgres

fork = multiprocessing.get_context("fork")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.ci)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'shared.db'}"
        return
    with postgres.server() as address:
        yield address


def content(url: str) -> str:
    """Everything that the database says of its studies."""
    studies = optuna.get_all_study_summaries(storage=url)
    found = [
        (s.study_name, s.user_attrs, [(t.state, t.values, t.user_attrs) for t in _trials(s, url)])
        for s in studies
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _trials(summary, url):
    return optuna.load_study(study_name=summary.study_name, storage=url).trials


def test_a_second_recipe_of_the_same_name_is_refused_before_anything_is_written(tmp_path, url):
    Study(recipe(num_trials=2, storage=url), tmp_path / "a", evaluator=StandIn()).run()
    before = content(url)
    evaluator = StandIn()
    other = Study(recipe(num_trials=3, storage=url), tmp_path / "b", evaluator=evaluator)
    with pytest.raises(UserError, match=r"another study named 'test' \(num_trials is 3 and was 2"):
        other.run()
    assert not (tmp_path / "b").exists()
    assert content(url) == before
    assert evaluator.calls == []
    assert len(reading.read(tmp_path / "a/test").trials) == 2


def test_a_first_attempt_without_any_work_gives_way_in_its_own_folder_only(tmp_path, url):
    class NoText(StandIn):
        def prepare(self):
            raise UserError("no such text")

    with pytest.raises(UserError, match="no such text"):
        Study(recipe(num_trials=2, storage=url), tmp_path / "a", evaluator=NoText()).run()
    corrected = recipe(num_trials=3, storage=url)
    with pytest.raises(UserError, match="another study named 'test'"):
        Study(corrected, tmp_path / "b", evaluator=StandIn()).run()
    assert len(Study(corrected, tmp_path / "a", evaluator=StandIn()).run().trials) == 3


def _run(url: str, runs: Path, log: Path) -> None:
    # Its first job takes until it is killed, however long another process takes to begin.
    Study(recipe(num_trials=4, storage=url), runs, evaluator=StandIn(log, 600.0)).run()


def test_two_processes_on_one_database(tmp_path, url):
    log = tmp_path / "log"
    process = fork.Process(target=_run, args=(url, tmp_path / "a", log))
    process.start()
    while not log.exists():
        time.sleep(0.01)
    with pytest.raises(StudyBusyError, match=r"(?s)is running this study; wait for it"):
        Study(recipe(num_trials=4, storage=url), tmp_path / "b", evaluator=StandIn()).run()
    process.kill()
    process.join()
    # The lock went with its process; the folder beside the database is another one, and empty.
    again = Study(recipe(num_trials=4, storage=url), tmp_path / "b", evaluator=StandIn()).run()
    assert len(again.trials) == 4


def test_many_studies_begin_at_once_on_a_new_database(tmp_path, url):
    def begin(name: str) -> None:
        Study(recipe(name=name, num_trials=1, storage=url), tmp_path, evaluator=StandIn()).run()

    processes = [fork.Process(target=begin, args=(f"study-{i}",)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(optuna.get_all_study_names(url)) == [f"study-{i}" for i in range(4)]


def test_an_emptied_folder_is_rebuilt_and_what_is_gone_is_named(tmp_path, url):
    given = recipe(num_trials=3, budgets=[], storage=url)
    whole = Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    shutil.rmtree(tmp_path / "test")
    evaluator = StandIn()
    study = Study(given, tmp_path, evaluator=evaluator, clock=no_time)
    record = study.run()
    assert evaluator.calls == ["close"]
    assert (study.folder / "recipe.yaml").read_bytes() == given.source
    assert [t.by_rung for t in record.trials] == [t.by_rung for t in whole.trials]
    assert [t.spec for t in record.trials] == [t.spec for t in whole.trials]
    for trial in record.trials:
        assert len(trial.damaged) == 1 + len(trial.by_rung)
        assert "missing; restore it from a copy" in trial.damaged[0]
    assert "Files lost" in html.render(record)
    assert study.run(redo=True).trials == whole.trials


def test_a_folder_of_another_study_than_the_databases_is_refused(tmp_path, url):
    given = recipe(num_trials=1, budgets=[], storage=url)
    Study(given, tmp_path / "a", evaluator=StandIn()).run()
    optuna.delete_study(study_name="test", storage=url)
    Study(given, tmp_path / "b", evaluator=StandIn()).run()
    with pytest.raises(UserError, match="belongs to another study named 'test' than the database"):
        Study(given, tmp_path / "a", evaluator=StandIn()).run()


def test_a_lost_database_is_rebuilt_from_the_folders_stages(tmp_path, url):
    given = recipe(num_trials=3, budgets=[], storage=url)
    whole = Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    optuna.delete_study(study_name="test", storage=url)
    evaluator = StandIn()
    assert Study(given, tmp_path, evaluator=evaluator, clock=no_time).run() == whole
    assert evaluator.calls == ["close"]


def test_a_study_that_is_not_archloops_is_left_alone(tmp_path, url):
    optuna.create_study(study_name="test", storage=url).optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(UserError, match=r"another version of archloop keeps \(schema 0"):
        Study(recipe(storage=url), tmp_path, evaluator=StandIn()).run()
    assert not (tmp_path / "test").exists()


def test_an_old_study_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    old = {"digest": "0" * 64, "sha256": "0" * 64, "settings": {"name": "test", "storage": None}}
    (folder / "recipe.json").write_text(json.dumps(old))
    message = r"recipe.json: a study that another version of archloop keeps \(schema 0"
    with pytest.raises(UserError, match=message):
        reading.read(folder)
    with pytest.raises(UserError, match=message) as caught:
        Study(recipe(), tmp_path, evaluator=StandIn()).run()
    assert "\n" not in str(caught.value)


def test_databases_whose_locks_are_not_known_are_refused():
    with (
        pytest.raises(UserError, match="cannot be locked in mysql; give a PostgreSQL"),
        exclusive_in("mysql+pymysql://localhost/none", "test"),
    ):
        pass


# --- SQLite's files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = Study(recipe(num_trials=3), tmp_path_factory.mktemp("runs"), evaluator=StandIn())
    study.run()
    return study.folder


def test_the_database_alone_is_the_whole_study(finished, tmp_path):
    assert sorted(path.name for path in finished.glob("study.db*")) == ["study.db"]
    shutil.copy(finished / "study.db", tmp_path)
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 3
    record = reading.read(tmp_path)
    whole = reading.read(finished)
    assert [t.by_rung for t in record.trials] == [t.by_rung for t in whole.trials]
    assert record.recipe == whole.recipe


def test_a_log_that_was_left_behind_is_read_without_its_index(finished, tmp_path):
    """A killed study, copied without the file that SQLite keeps in shared memory."""
    live, copy = tmp_path / "live", tmp_path / "copy"
    shutil.copytree(finished, live)
    copy.mkdir()
    with closing(sqlite3.connect(live / "study.db")) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.execute("UPDATE study_user_attributes SET value_json='{}' WHERE key='environment'")
        writer.commit()
        for name in ("study.db", "study.db-wal", "recipe.json"):
            shutil.copy(live / name, copy)
    assert (copy / "study.db-wal").stat().st_size
    assert reading.read(copy).environment == {}
    assert not (copy / "study.db-shm").exists()
