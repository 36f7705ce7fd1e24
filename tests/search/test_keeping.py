"""Which trials keep their trained weights, and what a copied study needs of them."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from archloop.findings.verdict import verdict
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objectives, Readings
from archloop.report.outcome import print_outcome
from archloop.search.keeping import Keeper, may_be_on_a_front
from archloop.search.rungs import Standings
from archloop.search.study import Study
from archloop.stack.spec import StackSpec
from archloop.store.folder import StudyFolder
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, recipe


class Keeping(StandIn):
    """Writes a word where weights would be kept."""

    def train(self, job: TrainJob, directory: Path) -> Rung:
        if job.weights_to is not None:
            job.weights_to.mkdir(parents=True, exist_ok=True)
            (job.weights_to / "word").write_text(f"rung {job.rung}")
        return super().train(job, directory)


def run(runs: Path, keep: str) -> tuple[StudyRecord, set[int]]:
    study = Study(recipe(keep=keep, seeds=2), runs, evaluator=Keeping(), clock=no_time)
    record = study.run()
    found = {int(path.parent.name) for path in (study.folder / "trials").glob("*/weights")}
    return record, found


def test_all_are_kept_of_their_highest_rung(tmp_path: Path) -> None:
    record, found = run(tmp_path, "all")
    trained = {trial.number for trial in record.trials if trial.by_rung}
    assert found == trained
    for trial in record.trials:
        if trial.by_rung:
            word = tmp_path / "test" / "trials" / f"{trial.number:06d}" / "weights" / "word"
            assert word.read_text() == f"rung {len(trial.by_rung) - 1}"
    assert (tmp_path / "test" / "reference" / "weights" / "word").read_text() == "rung 2"


def test_none_are_kept(tmp_path: Path) -> None:
    _, found = run(tmp_path, "none")
    assert not found
    assert not (tmp_path / "test" / "reference" / "weights").exists()


def test_those_of_the_front_are_kept(tmp_path: Path) -> None:
    record, found = run(tmp_path, "front")
    trained = {trial.number: trial for trial in record.trials if trial.by_rung}
    assert found <= set(trained)
    # Whatever is on the front in the end has its weights.
    ended = verdict(record)
    assert ended is not None
    front = {ended.rows[i].trial.number for i in ended.comparison.reported if i >= 0}
    assert front
    assert front <= found


NOISE = [{"quality": Readings(mean=0.6, sd=0.02, n=7)}]


def standings() -> Standings:
    """Trial 1 is behind 0 by less than the noise, 2 by far more; 3 is the fastest."""
    found = Standings()
    for number, (quality, latency) in enumerate(
        [(0.60, 1.0), (0.59, 1.01), (0.3, 1.2), (0.3, 0.8)]
    ):
        readings = {
            "quality": Readings(mean=quality),
            "latency": Readings(mean=latency, sd=0.02, n=4),
            "memory": Readings(mean=1.0, n=0),
        }
        found.add(number, Objectives(values=readings))
    return found


def test_a_trial_that_noise_alone_puts_behind_another_keeps_its_weights() -> None:
    assert may_be_on_a_front([standings()], NOISE, OBJECTIVES) == {0, 1, 3}
    assert may_be_on_a_front([Standings()], NOISE, OBJECTIVES) == set()


def test_a_trial_under_way_keeps_the_checkpoint_that_it_goes_on_from(tmp_path: Path) -> None:
    home = StudyFolder(tmp_path / "test")
    place = home.trial(2).checkpoint(0)
    place.parent.mkdir(parents=True)
    place.write_text("rung 0")
    keeper = Keeper(home, recipe())
    keeper.remember(2)
    keeper.forget([standings()], NOISE, busy={2})
    assert place.exists()
    keeper.forget([standings()], NOISE)
    assert not place.exists()


def test_each_trial_has_its_spec_to_ship(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "none")
    for trial in record.trials:
        text = (tmp_path / "test" / "trials" / f"{trial.number:06d}" / "spec.json").read_text()
        assert StackSpec.from_json(text) == trial.spec
    text = (tmp_path / "test" / "reference" / "spec.json").read_text()
    assert record.reference is not None
    assert StackSpec.from_json(text) == record.reference.spec


class Stopping(Keeping):
    """Stopped by hand in the middle of a trial that has passed its first rung."""

    def _called(self, what: str, stage_file: Path) -> None:
        super()._called(what, stage_file)
        if what.startswith("rung-1 ") and "00000" in stage_file.parent.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize("with_weights", [True, False], ids=["with weights", "without"])
def test_a_copy_elsewhere_is_the_same_study_and_goes_on(tmp_path: Path, with_weights: bool) -> None:
    whole = Study(recipe(), tmp_path / "whole", evaluator=Keeping(), clock=no_time).run()
    with pytest.raises(KeyboardInterrupt):
        Study(recipe(), tmp_path / "here", evaluator=Stopping(), clock=no_time).run()
    there = tmp_path / "another" / "machine"

    def left_behind(_: str, names: list[str]) -> list[str]:
        heavy = ("weights", "artifacts")
        return [n for n in names if not with_weights and (n in heavy or n.endswith("checkpoint"))]

    shutil.copytree(tmp_path / "here" / "test", there / "test", ignore=left_behind)
    shutil.rmtree(tmp_path / "here")
    log = tmp_path / "log"
    record = Study(recipe(), there, evaluator=Keeping(log), clock=no_time).run()
    # The same study: nothing finished was done again, and all that came is what would have come.
    assert "AGAIN" not in log.read_text()
    assert record == whole


def test_what_is_lost_of_the_reference_stays_lost_and_is_told(tmp_path: Path) -> None:
    """A second measurement of it would move what all trials were compared with."""

    def study(evaluator: StandIn) -> Study:
        return Study(recipe(num_trials=3, budgets=[]), tmp_path, evaluator=evaluator, clock=no_time)

    whole = study(Keeping()).run()
    (tmp_path / "test" / "reference" / "profile.json").write_text("{}")
    evaluator = Keeping()
    again = study(evaluator).run(redo=True)
    assert evaluator.calls == ["close"]
    assert again.trials == whole.trials
    assert again.reference is not None
    assert again.reference.by_rung == whole.reference.by_rung  # type: ignore[union-attr]
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(again, None, console)
    assert "lost of the reference preset" in (text := console.export_text())
    assert "--redo leaves it" in text
