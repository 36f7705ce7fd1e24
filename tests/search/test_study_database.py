"""The database of a study: read by Optuna's tools, touched by them, elsewhere, or none."""

import json
import shutil
import sqlite3
from pathlib import Path

import optuna
import pytest
import yaml

from archloop.errors import UserError
from archloop.search.recipe.recipe import RecipeError, load
from archloop.search.study import Study
from archloop.store import reading
from archloop.store.progress import Event
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, recipe, settings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRecord, StandIn, Path]:
    evaluator = StandIn()
    study = Study(recipe(), tmp_path_factory.mktemp("runs"), evaluator=evaluator, clock=no_time)
    return study.run(), evaluator, study.folder


@pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator:UserWarning")
def test_optuna_reads_the_study(finished):
    record, _, folder = finished
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{folder / 'study.db'}")
    assert study.metric_names == ["quality", "latency", "memory"]
    for trial, ours in zip(study.trials, record.trials, strict=True):
        assert trial.user_attrs["genome"] == ours.genome
        infeasible = any(value > 0 for value in trial.constraints.values())
        assert infeasible == (ours.state == "rejected")
        assert trial.params["num_gqa"] == ours.spec.layout.count("gqa")
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert complete[0].values is not None
    assert optuna.importance.get_param_importances(study, target=lambda t: t.values[0])


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_that_optunas_tools_touched(tmp_path):
    study = Study(recipe(num_trials=3), tmp_path, evaluator=StandIn(), clock=no_time)
    url = f"sqlite:///{study.folder / 'study.db'}"

    def meddle(event: Event) -> None:
        if event.phase == "profile" and event.trial == 1:
            theirs = optuna.load_study(study_name="test", storage=url)
            theirs.ask()
            theirs.enqueue_trial({"num_gqa": 1})
            theirs.tell(1, state=optuna.trial.TrialState.FAIL)

    record = study.run(meddle)
    whole = Study(recipe(num_trials=3), tmp_path / "b", evaluator=StandIn(), clock=no_time).run()
    assert record == whole
    assert Study(recipe(num_trials=3), tmp_path, evaluator=StandIn(), clock=no_time).run() == whole


def test_a_trial_ended_from_outside_while_nobody_ran_it_counts_as_failed(tmp_path):
    class Stopped(StandIn):
        def train(self, job, directory):
            if "000001" in str(directory):
                raise KeyboardInterrupt
            return super().train(job, directory)

    study = Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=Stopped())
    with pytest.raises(KeyboardInterrupt):
        study.run()
    url = f"sqlite:///{study.folder / 'study.db'}"
    optuna.load_study(study_name="test", storage=url).tell(1, state=optuna.trial.TrialState.FAIL)
    record = Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=StandIn()).run()
    assert [trial.state for trial in record.trials] == ["complete", "failed", "complete"]
    assert "ended from outside" in str(record.trials[1].error)


def test_reading_writes_nothing(finished):
    record, _, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert reading.read(folder) == record
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if not p.name.startswith("study.db-")} == {
        p: t for p, t in before.items() if not p.name.startswith("study.db-")
    }


def test_a_study_from_before_a_field_was_added_is_read(finished, tmp_path):
    record, _, home = finished
    copy = tmp_path / "test"
    shutil.copytree(home, copy)
    with sqlite3.connect(copy / "study.db") as database:
        found = database.execute(
            "DELETE FROM trial_user_attributes WHERE key = 'num_ruled_out'"
        ).rowcount
    assert found == len(record.trials)
    assert reading.read(copy) == record


def test_store_is_small(finished):
    _, _, folder = finished
    with sqlite3.connect(folder / "study.db") as connection:
        rows = connection.execute("select count(*) from trial_params").fetchone()[0]
    assert rows <= 14 * 5
    assert json.loads((folder / "recipe.json").read_text())["card"]["name"] == "test"


def test_running_study_can_be_read(tmp_path):
    seen: list[StudyRecord] = []
    study = Study(recipe(num_trials=3), tmp_path, evaluator=StandIn())

    def listen(event: Event) -> None:
        seen.append(study.read())

    study.run(listen)
    assert seen[0].reference is None
    states = [[trial.state for trial in record.trials] for record in seen]
    assert ["running"] in states
    assert ["complete", "running"] in states


def test_read_only_copy_can_be_read(finished, tmp_path):
    record, _, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in [*copy.rglob("*"), copy]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert reading.read(copy) == record


def test_another_database_by_url(tmp_path):
    elsewhere = recipe(num_trials=3, storage=f"sqlite:///{tmp_path / 'other.db'}")
    record = Study(elsewhere, tmp_path, evaluator=StandIn(), clock=no_time).run()
    assert (tmp_path / "other.db").exists()
    assert not (tmp_path / "test" / "study.db").exists()
    assert len(record.trials) == 3
    assert Study(elsewhere, tmp_path, evaluator=StandIn(), clock=no_time).run() == record


def test_database_that_cannot_be_opened_is_one_line(tmp_path):
    for url in ("nosuch://host/db", "mysql+pymysql://localhost/none", "sqlite:////nowhere/x.db"):
        with pytest.raises(ValueError, match="storage: ") as caught:
            Study(recipe(storage=url), tmp_path, evaluator=StandIn()).run()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "test").exists()


def test_a_wrong_storage_names_the_recipe_and_may_be_corrected(tmp_path):
    def run(url: str) -> StudyRecord:
        given = recipe(num_trials=1, budgets=[], storage=url)
        return Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()

    with pytest.raises(
        RecipeError, match=r"^recipe 'test': storage: the database cannot be opened"
    ):
        run("sqlite:////nowhere/x.db")
    assert len(run(f"sqlite:///{tmp_path / 'study.db'}").trials) == 1


def test_the_password_of_the_database_is_in_no_file_and_may_change(tmp_path):
    url = f"sqlite:///file:{tmp_path / 'other.db'}?uri=true&password="
    source = tmp_path / "test.yaml"
    for number, password in ((2, "hunter2"), (2, "hunter3")):
        source.write_text(yaml.safe_dump(settings(num_trials=number, storage=url + password)))
        evaluator = StandIn()
        study = Study(load(source), tmp_path / "runs", evaluator=evaluator)
        assert len(study.run().trials) == 2
    assert evaluator.calls == ["close"]
    for file in study.folder.rglob("*"):
        assert file.is_dir() or b"hunter" not in file.read_bytes(), file
    assert len(reading.read(study.folder).trials) == 2
    assert len(reading.read(study.folder, url + "hunter2").trials) == 2


def test_a_database_that_is_none_says_so(finished, tmp_path):
    _, _, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for file in copy.glob("study.db*"):
        file.unlink()
    (copy / "study.db").write_text("x" * 5000)
    with pytest.raises(UserError, match="file is not a database; restore the database from a copy"):
        reading.read(copy)
