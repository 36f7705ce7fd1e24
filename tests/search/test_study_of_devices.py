"""A study in which no score tells the anchor stacks apart: it ends as a study of devices."""

import json
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from archloop.errors import UserError
from archloop.findings.rerank import reranked
from archloop.findings.verdict import verdict
from archloop.ranking.budgets import Budget
from archloop.ranking.record import Objective
from archloop.report import html, static, summary
from archloop.report.outcome import print_outcome
from archloop.search.study import Study
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, recipe


class Dull(StandIn):
    """Every training of every stack scores the same."""

    def __init__(self, stops_at: int | None = None) -> None:
        super().__init__()
        self.stops_at = stops_at

    def train(self, job, directory):
        rung = super().train(job, directory)
        same = {n: s.model_copy(update={"value": 0.5}) for n, s in rung.scores.items()}
        return rung.model_copy(update={"scores": same})

    def profile(self, *arguments):
        if len(self.calls) == self.stops_at:
            raise KeyboardInterrupt
        return super().profile(*arguments)


def study(folder: Path, evaluator: StandIn, **changes) -> Study:
    changes = {"num_trials": 6, "looks": 1, **changes}
    return Study(recipe(**changes), folder, evaluator=evaluator, clock=no_time)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Dull, StudyRecord, Path]:
    evaluator = Dull()
    made = study(tmp_path_factory.mktemp("dull"), evaluator)
    return evaluator, made.run(), made.folder


def test_it_ends_with_figures_and_budgets_and_trains_no_candidate(ended):
    evaluator, record, _ = ended
    assert record.scale is None
    assert set(record.dropped) == {"recall", "noise", "text"}
    states = [trial.state for trial in record.trials]
    assert set(states) == {"complete", "rejected"}
    assert all(trial.profiles for trial in record.trials)
    assert not any(trial.rungs or trial.damaged for trial in record.trials)
    trained = [call for call in evaluator.calls if call.startswith("rung")]
    # The reference preset and two anchor stacks, three times each; no trial.
    assert len([call for call in trained if "rung-0" in call]) == 9
    assert not any(f" in {trial.number:06d}" in call for trial in record.trials for call in trained)
    assert [objective.name for objective in record.objectives] == ["latency", "memory"]


def test_nothing_is_ranked_and_so_nothing_replicated(ended):
    _, record, _ = ended
    assert not any(trial.replicates is not None for trial in record.trials)
    found = verdict(record)
    assert found is not None
    assert found.comparison.unranked[0] == "quality"
    assert not found.ranks_quality
    # What is certain of the devices is said all the same.
    assert any(row.place.member.better_in for row in found.rows)


def test_screen_and_report_say_that_quality_is_not_ranked_and_what_may(ended, tmp_path):
    _, record, _ = ended
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(record, None, console)
    text = console.export_text()
    for shown in (text, html.render(record)):
        assert "cannot rank quality: no score tells the anchor stacks apart" in shown
        assert "reference_seeds" in shown
        assert "on the front beyond doubt" not in shown
    # No plot is called by quality, which it does not show, and no plot is empty.
    page = html.render(record)
    assert "latency and memory" in page
    assert "quality and" not in page
    assert "training step" not in page
    assert "rejected" in text
    assert "TTFT ms" in text
    facts = json.loads(json.dumps(summary.summarize(record), allow_nan=False))
    assert facts["unranked"][0] == "quality"
    assert {place["status"] for place in facts["places"]} <= {"tied", "dominated", "front"}
    static.write(record, tmp_path / "front.svg")


def test_one_objective_is_drawn_against_nothing(tmp_path):
    record = study(tmp_path, Dull(), objectives=["quality", "latency"]).run()
    assert [objective.name for objective in record.objectives] == ["latency"]
    with pytest.raises(UserError, match="test has no objective to draw latency against"):
        static.write(record, tmp_path / "front.svg")


def test_stopped_and_gone_on_with_it_is_the_same(ended, tmp_path):
    evaluator, record, _ = ended
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, Dull(stops_at=len(evaluator.calls) - 3)).run()
    again = study(tmp_path, Dull()).run()
    assert again.trials == record.trials


@pytest.mark.parametrize("name, start", [("model", {"start": 4}), ("nsga2", {"population": 4})])
def test_a_strategy_goes_on_by_what_devices_say(name, start, tmp_path):
    chosen = {"name": name, "settings": start}
    record = study(tmp_path, Dull(), num_trials=8, strategy=chosen).run()
    assert record.trials[-1].origin not in ("random", "preset")


def test_other_budgets_and_objectives_are_those_of_devices_too(ended):
    _, record, _ = ended
    tight = [Budget(metric="ttft_ms", limit=1.0, relative=True)]
    wanted = [Objective(name="decode_p50_ms", direction="minimize")]
    anew = reranked(record, budgets=tight, objectives=wanted).record
    assert [each.name for each in anew.objectives] == ["latency", "decode_p50_ms"]
    assert sum(t.state == "rejected" for t in anew.trials) > 0


def test_optuna_reads_it(ended):
    *_, folder = ended
    found = optuna.load_study(study_name="test", storage=f"sqlite:///{folder}/study.db")
    assert len(found.directions) == 3
    assert found.best_trials
    assert all(len(trial.values) == 3 for trial in found.best_trials)
