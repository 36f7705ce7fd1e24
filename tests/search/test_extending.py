"""More trials for a study: by its folder alone, under another name, and gone on with."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.proxy.record import Rung, TrainJob
from archloop.search import study as studies
from archloop.search.errors import NoFeasibleTrial
from archloop.search.recipe.recipe import load, parse
from archloop.search.study import Study
from archloop.store.record import StudyRecord
from report.studies import spec
from search.stand_in import StandIn, no_time, settings

ONE_RUNG = {"rungs": [10]}
"""Nothing climbs, so that a trial that was told stays as it is."""


class Clock:
    """Stands still but for who moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(StandIn):
    """Each training takes ten minutes of a clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def train(self, job: TrainJob, directory: Path) -> Rung:
        self.clock.now += 600
        return super().train(job, directory)


def begun(runs: Path, **changes: object) -> StudyRecord:
    file = runs / "recipe.yaml"
    runs.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings(num_trials=4, **changes)))))
    return Study(load(file), runs, evaluator=StandIn(), clock=no_time).run()


def opened(folder: Path, log: Path | None = None) -> Study:
    return Study.open(folder, evaluator=StandIn(log), clock=no_time)


def originals(record: StudyRecord) -> list[int]:
    return [trial.number for trial in record.trials if trial.replicates is None]


def test_an_extension_goes_on_where_the_study_ended(tmp_path: Path) -> None:
    before = begun(tmp_path, proxy=ONE_RUNG)
    log = tmp_path / "log"
    record = opened(tmp_path / "test", log).run(more=3)
    assert "AGAIN" not in log.read_text()
    assert record.trials[:4] == before.trials
    assert originals(record) == list(range(7))
    # What it proposed is what a study of seven would have.
    whole = Study(
        load(tmp_path / "recipe.yaml").model_copy(update={"num_trials": 7}),
        tmp_path / "whole",
        evaluator=StandIn(),
        clock=no_time,
    ).run()
    assert [t.spec for t in record.trials] == [t.spec for t in whole.trials]
    # Its own recipe finds nothing to do.
    again = Study(load(tmp_path / "recipe.yaml"), tmp_path, evaluator=StandIn(), clock=no_time)
    assert again.run() == record


def test_replicates_that_were_made_count_for_nothing(tmp_path: Path) -> None:
    before = begun(tmp_path, replicates=1)
    assert len(before.trials) > len(originals(before)) == 4
    record = opened(tmp_path / "test").run(more=2)
    assert len(originals(record)) == 6
    assert record.trials[: len(before.trials)] == before.trials


def test_time_that_ended_a_study_does_not_end_its_extension(tmp_path: Path) -> None:
    clock = Clock()

    def run(more: int = 0) -> StudyRecord:
        recipe = parse(settings(num_trials=14, max_hours=3), "test.yaml")
        study = Study(recipe, tmp_path, evaluator=Slow(clock), clock=clock)
        return study.run(more=more)

    ended = run()
    assert ended.ended == "its time of 3 h is spent"
    assert run() == ended
    num = len(ended.trials)
    extended = run(more=2)
    # Trials that waited for a longer training when the time was spent may have had it now.
    assert [t.spec for t in extended.trials[:num]] == [t.spec for t in ended.trials]
    assert originals(extended) == list(range(num + 2))
    assert extended.ended is None
    # What was asked for is done: neither the recipe nor its time asks for another.
    assert run() == extended


def test_specs_that_were_not_reached_are_tried_whatever_was_replicated(tmp_path: Path) -> None:
    specs = [spec(pattern) for pattern in ("CCCC", "CACA", "AAAA", "CCCA", "AAAC", "ACCC")]

    clock = Clock()

    def run(more: int = 0) -> StudyRecord:
        changes = {"specs": [each.model_dump() for each in specs], "proxy": {"rungs": [10]}}
        changes |= {"num_trials": 6, "max_hours": 1.9, "replicates": 1, "budgets": []}
        study = Study(
            parse(settings(**changes), "test.yaml"),
            tmp_path,
            evaluator=Slow(clock),
            clock=clock,
        )
        return study.run(more=more)

    ended = run()
    # Nine trainings of the reference and the anchors, and one of each trial.
    assert ended.ended == "its time of 1.9 h is spent"
    assert originals(ended) == [0, 1, 2]
    assert len(ended.trials) > 3
    extended = run(more=3)
    assert [extended.trials[number].spec for number in originals(extended)] == specs


def test_a_stopped_extension_goes_on_and_adds_nothing(tmp_path: Path) -> None:
    begun(tmp_path)

    class Stopped(StandIn):
        def _called(self, what: str, stage_file: Path) -> None:
            super()._called(what, stage_file)
            if "000005" in stage_file.parent.name:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study.open(tmp_path / "test", evaluator=Stopped(), clock=no_time).run(more=3)
    assert originals(opened(tmp_path / "test").run(more=3)) == list(range(7))
    assert originals(opened(tmp_path / "test").run(more=1)) == list(range(8))


def test_more_trainings_of_each_trial_measure_nothing_again(tmp_path: Path) -> None:
    before = begun(tmp_path, proxy=ONE_RUNG)
    log = tmp_path / "log"
    record = opened(tmp_path / "test", log).run(seeds=3)
    calls = log.read_text().splitlines()
    assert calls
    assert all("seed-" in call for call in calls), calls
    assert [t.profiles for t in record.trials] == [t.profiles for t in before.trials]
    for was, now in zip(before.trials, record.trials, strict=True):
        assert now.state == was.state
        if was.reached:
            assert len(now.scores_by_seed[0]) == 3
            assert now.by_rung[0].values["quality"].n == 3
        else:
            assert now == was
    # From now on each trial is trained as often, and what was asked for is kept.
    more = opened(tmp_path / "test").run(more=2)
    assert more.trials[:4] == record.trials
    assert all(len(t.scores_by_seed[0]) == 3 for t in more.trials[4:] if t.reached)
    with pytest.raises(UserError, match="has 3 trainings a trial already"):
        opened(tmp_path / "test").run(seeds=2)


def test_more_trainings_that_were_stopped_go_on(tmp_path: Path) -> None:
    begun(tmp_path)

    class Stopped(StandIn):
        def _called(self, what: str, stage_file: Path) -> None:
            super()._called(what, stage_file)
            if len(self.calls) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Study.open(tmp_path / "test", evaluator=Stopped(), clock=no_time).run(seeds=2)
    log = tmp_path / "log"
    record = opened(tmp_path / "test", log).run()
    assert "AGAIN" not in log.read_text()
    assert all(len(t.scores_by_seed[0]) == 2 for t in record.trials if t.reached)


def test_a_first_look_that_was_lost_is_named_and_taken_again(tmp_path: Path) -> None:
    recipe = parse(settings(num_trials=14), "test.yaml")
    study = Study(recipe, tmp_path, evaluator=StandIn(), clock=no_time)
    before = study.run()
    looked_twice = [t for t in before.trials if t.reached and "profile-2" in t.files]
    number = looked_twice[0].number
    (study.folder / f"trials/{number:06}/profile.json").unlink()
    (damaged,) = study.read().trials[number].damaged
    assert "profile.json: missing" in damaged
    trial = study.run(seeds=2).trials[number]
    assert not trial.damaged
    assert trial.profiles == before.trials[number].profiles
    assert len(trial.scores_by_seed[0]) == 2


def test_a_replicate_that_was_begun_waits_for_no_training_of_its_original(tmp_path: Path) -> None:
    class Stopped(StandIn):
        def _called(self, what: str, stage_file: Path) -> None:
            super()._called(what, stage_file)
            # Four trials are wanted, so this is the first replicate.
            if "000004" in stage_file.parent.name:
                raise KeyboardInterrupt

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings(num_trials=4, replicates=1)))))
    with pytest.raises(KeyboardInterrupt):
        Study(load(file), tmp_path, evaluator=Stopped(), clock=no_time).run()
    # All are to be trained once more, the trial that the replicate repeats among them.
    record = opened(tmp_path / "test").run(seeds=2)
    repeated = [trial for trial in record.trials if trial.replicates is not None]
    assert repeated
    for trial in repeated:
        assert trial.replicates is not None
        assert len(trial.by_rung) == len(record.trials[trial.replicates].by_rung)
        assert len(trial.scores_by_seed[0]) == 2


def test_an_extension_without_a_feasible_trial_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = [{"metric": "decode_p50_ms", "limit": 0.2, "relative": True}]
    with pytest.raises(NoFeasibleTrial):
        begun(tmp_path, budgets=tight, initial=[])
    monkeypatch.setattr(studies.Study, "_hardware", lambda _: StandIn())
    asked = ["extend", str(tmp_path / "test"), "--trials", "2", "--json"]
    result = CliRunner().invoke(app, asked)
    assert (result.exit_code, "no feasible trial" in result.stderr) == (1, True)
    assert len(json.loads(result.stdout)["trials"]) == 6
    assert (tmp_path / "test" / "report.html").exists()


def test_a_training_that_fails_later_loses_nothing(tmp_path: Path) -> None:
    before = begun(tmp_path)
    lost = next(trial for trial in before.trials if trial.reached)
    failing = StandIn(fails=lost.proxy_spec.digest)
    record = Study.open(tmp_path / "test", evaluator=failing, clock=no_time).run(seeds=2)
    kept = record.trials[lost.number]
    assert (kept.state, kept.by_rung) == ("complete", lost.by_rung)
    assert "one more training: " in (kept.error or "")
    mended = opened(tmp_path / "test").run().trials[lost.number]
    assert mended.error is None
    assert len(mended.scores_by_seed[0]) == 2


def test_a_renamed_and_moved_study_is_the_same(tmp_path: Path) -> None:
    before = begun(tmp_path)
    shutil.move(tmp_path / "test", tmp_path / "elsewhere" / "other")
    record = opened(tmp_path / "elsewhere" / "other").run(more=1)
    assert record.trials[:4] == before.trials
    assert not (tmp_path / "elsewhere" / "test").exists()


def test_no_study_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study here"):
        Study.open(tmp_path)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path)
    monkeypatch.setattr(studies.Study, "_hardware", lambda _: StandIn())
    result = CliRunner().invoke(app, ["extend", str(tmp_path / "test"), "--trials", "2", "--json"])
    assert result.exit_code == 0
    assert [trial["number"] for trial in json.loads(result.stdout)["trials"]] == list(range(6))
    # A study goes on by its folder alone; this one has nothing left to do.
    again = CliRunner().invoke(app, ["search", str(tmp_path / "test"), "--json"])
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    deeper = CliRunner().invoke(app, ["extend", str(tmp_path / "test"), "--seeds", "2"])
    assert deeper.exit_code == 0, deeper.stderr
    result = CliRunner().invoke(app, ["extend", str(tmp_path / "test")])
    assert (result.exit_code, "say what to add: --trials, or --seeds" in result.stderr) == (2, True)
    result = CliRunner().invoke(app, ["extend", str(tmp_path / "nowhere"), "--trials", "2"])
    assert (result.exit_code, "no study here" in result.stderr) == (2, True)
