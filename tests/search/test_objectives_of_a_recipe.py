"""Objectives are a list in the recipe: a new one is a line there, and nothing else."""

import json
from pathlib import Path

import pytest
from optuna.storages import RDBStorage

from archloop.findings.verdict import verdict
from archloop.ranking.objectives import OBJECTIVES
from archloop.report import html
from archloop.report.summary import summarize
from archloop.search.errors import StudyError
from archloop.search.recipe.recipe import RecipeError
from archloop.search.study import Study
from archloop.stack.spec import StackSpec
from archloop.store.stages import Profiled
from search.stand_in import StandIn, no_time, recipe

SLOW = {"name": "slow", "direction": "minimize", "figure": "latency", "contexts": "worst"}
FOUR = [
    "quality",
    "latency",
    "memory",
    {"name": "first token", "direction": "minimize", "figure": "ttft_ms"},
]


def test_the_default_is_quality_latency_and_memory() -> None:
    assert recipe().objectives == recipe(objectives=["quality", "latency", "memory"]).objectives
    assert recipe().objectives == OBJECTIVES


@pytest.mark.parametrize("strategy", ["nsga2", "star", "random", "model"])
def test_a_study_of_four(tmp_path: Path, strategy: str) -> None:
    asked = recipe(objectives=FOUR, strategy={"name": strategy}, num_trials=8, replicates=1)
    study = Study(asked, tmp_path, evaluator=StandIn(), clock=no_time)
    record = study.run()
    names = [objective.name for objective in record.objectives]
    assert names == ["quality", "latency", "memory", "first token"]
    reached = [trial for trial in record.trials if trial.by_rung]
    for trial in reached:
        assert list(trial.by_rung[0].values) == names
        ratios = trial.profiles["here"].ratios
        expected = [ratios[context]["ttft_ms"].value for context in ratios]
        assert trial.by_rung[0].mean("first token") == pytest.approx(expected[0])
    assert record.reference_point is not None
    assert record.reference_point.mean("first token") == 1.5
    found = verdict(record)
    assert found is not None
    assert list(found.reference.place.estimates) == names
    assert set(summarize(record)["reliability"]) == set(names)
    assert html.write(record, tmp_path / "page.html").stat().st_size
    storage = RDBStorage(f"sqlite:///{study.folder}/study.db")
    [kept] = storage.get_all_studies()
    assert [direction.name for direction in kept.directions] == ["MAXIMIZE"] + ["MINIMIZE"] * 3
    # Stopped and read again by the recipe that it kept, it is the same.
    again = Study(asked, tmp_path, evaluator=StandIn(), clock=no_time).run()
    assert again == record


def test_a_category_of_scores(tmp_path: Path) -> None:
    recall = {"name": "recall", "direction": "maximize", "figure": "quality:recall"}
    asked = recipe(objectives=["quality", "latency", recall], num_trials=4)
    record = Study(asked, tmp_path, evaluator=StandIn(), clock=no_time).run()
    [first, *_] = [trial for trial in record.trials if trial.by_rung]
    assert list(first.by_rung[0].values) == ["quality", "latency", "recall"]
    wit = {"name": "wit", "direction": "maximize", "figure": "quality:wit"}
    asked = recipe(objectives=["quality", "latency", wit], name="other")
    with pytest.raises(StudyError, match="no score of category 'wit' counts"):
        Study(asked, tmp_path, evaluator=StandIn(), clock=no_time).run()


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["latency", "memory"], "leave quality among them"),
        (["quality", "memory"], "leave latency among them"),
        ([*FOUR, "memory"], "two objectives are called 'memory'"),
        ([*FOUR[:3], {"name": "joy", "direction": "maximize"}], "figure 'joy'; known are quality"),
        (["quality", "latency", "speed"], "objectives"),
        ([*FOUR, SLOW], "latency is not known by context"),
        ([*FOUR, {**SLOW, "figure": "quality:text"}], "quality:text is not known by context"),
    ],
)
def test_lists_that_cannot_work(objectives: list[object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(objectives=objectives)


def test_what_no_device_tells_ends_the_study_before_anything_is_trained(tmp_path: Path) -> None:
    energy = {"name": "energy", "direction": "minimize", "figure": "joules_per_token"}
    evaluator = StandIn()
    asked = recipe(objectives=["quality", "latency", energy])
    with pytest.raises(StudyError, match="objectives: the profile on here has no joules_per_token"):
        Study(asked, tmp_path, evaluator=evaluator, clock=no_time).run()
    assert [call.split()[0] for call in evaluator.calls] == ["profile", "close"]


class Metered(StandIn):
    """Counts energy, but for the first candidate, during which the counter cannot be read."""

    lost = ""

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, directory: Path
    ) -> Profiled:
        made = super().profile(spec, reference, look, directory)
        if spec != reference and not self.lost:
            self.lost = spec.digest
        if spec.digest == self.lost:
            return made
        profile = made.profiles["here"]
        ratios = {
            context: {**by_name, "joules_per_token": by_name["decode_p50_ms"]}
            for context, by_name in profile.ratios.items()
        }
        return Profiled(profiles={"here": profile.model_copy(update={"ratios": ratios})})


def test_what_a_device_does_not_tell_of_one_trial_fails_that_trial_alone(tmp_path: Path) -> None:
    energy = {"name": "energy", "direction": "minimize", "figure": "joules_per_token"}
    asked = recipe(objectives=["quality", "latency", energy], num_trials=8)
    evaluator = Metered()
    record = Study(asked, tmp_path, evaluator=evaluator, clock=no_time).run()
    (failed,) = (trial for trial in record.trials if trial.state == "failed")
    assert failed.spec.digest == evaluator.lost
    assert failed.error is not None
    assert failed.error.startswith("profiling: the profile on here has no joules_per_token ratio")
    assert any(trial.by_rung for trial in record.trials)
    again = Study(asked, tmp_path, evaluator=Metered(), clock=no_time).run()
    assert again == record, "the same command goes on"


def test_objectives_are_part_of_what_a_study_is(tmp_path: Path) -> None:
    assert recipe(objectives=FOUR).digest != recipe().digest
    assert json.loads(json.dumps(recipe().plain()))["objectives"][0]["name"] == "quality"
