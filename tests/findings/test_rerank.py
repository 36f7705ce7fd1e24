"""Other budgets, objectives and targets are judged by what is stored, and nothing is measured."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.findings.preference import preferred
from archloop.findings.rerank import reranked
from archloop.findings.verdict import verdict
from archloop.ranking import phrases
from archloop.ranking.budgets import Budget
from archloop.report import html, trials
from archloop.store import reading
from archloop.store.record import StudyRecord


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyRecord:
    return reading.read(folder)


def states(record: StudyRecord) -> dict[int, str]:
    return {trial.number: trial.state for trial in record.trials}


def decode(limit: float, **more: Any) -> Budget:
    return Budget(metric="decode_p50_ms", limit=limit, **more)


def test_under_the_same_terms_a_study_is_what_it_was(study: StudyRecord) -> None:
    found = reranked(study)
    assert found.unknown == ()
    same = {"recipe": found.record.recipe, "reference": study.reference}
    assert found.record.model_copy(update=same) == study
    # All that was fixed before trial 0 is made again from files, to the last digit.
    assert found.record.reference == study.reference


def test_an_objective_that_is_named_twice_counts_once(study: StudyRecord) -> None:
    memory = phrases.objective("memory")
    once, twice = (reranked(study, objectives=[memory] * count) for count in (1, 2))
    assert twice.record == once.record


def test_tighter_budgets_reject_what_breaks_them(study: StudyRecord) -> None:
    found = reranked(study, budgets=[decode(0.9, relative=True)])
    for before, after in zip(study.trials, found.record.trials, strict=True):
        value = before.profiles["here"].ratios["64"]["decode_p50_ms"].value
        assert after.state == ("rejected" if value > 0.9 else "complete"), value
        assert bool(after.broken) == (value > 0.9)
    assert {"rejected", "complete"} == set(states(found.record).values())
    ranked = verdict(found.record)
    assert ranked is not None
    kept = [n for n, state in states(found.record).items() if state == "complete"]
    assert [row.trial.number for row in ranked.rows] == kept


def test_looser_budgets_name_the_stacks_that_were_never_trained(study: StudyRecord) -> None:
    rejected = [n for n, state in states(study).items() if state == "rejected"]
    assert rejected, "the example rejects some"
    found = reranked(study, budgets=[])
    assert set(states(found.record).values()) == {"complete", "rejected"}
    (line,) = found.unknown
    assert "never trained" in line
    assert [int(n) for n in re.findall(r"\d+", line)] == rejected
    # Nor is it said of them that they broke a budget, of which there is none.
    shown = trials.shown(found.record, verdict(found.record))
    assert {each.place for each in shown if each.trial.number in rejected} == {"never trained"}
    assert html.NEVER_TRAINED in html.render(found.record).replace("&#39;", "'")


def test_another_objective_is_read_off_the_stored_scores_of_each_training(
    study: StudyRecord,
) -> None:
    recall, first_token = phrases.objective("quality:recall"), phrases.objective("ttft_ms@worst")
    found = reranked(study, objectives=[recall, first_token]).record
    assert [each.name for each in found.objectives] == [
        "quality",
        "latency",
        "quality:recall",
        "ttft_ms-worst",
    ]
    scale = study.scale
    assert scale is not None
    for before, after in zip(study.trials, found.trials, strict=True):
        if before.state != "complete":
            continue
        trainings = before.scores_by_seed[0]
        assert len(trainings) == 2
        values = [scale.categories(each)["recall"] / scale.spreads["recall"] for each in trainings]
        read = after.by_rung[0].values["quality:recall"]
        assert (read.mean, read.n) == (pytest.approx(sum(values) / 2), 2)
        ratio = before.profiles["here"].ratios["64"]["ttft_ms"].value
        assert after.by_rung[0].mean("ttft_ms-worst") == pytest.approx(ratio)
        assert after.by_rung[0].values["quality"] == before.by_rung[0].values["quality"]
    ranked = verdict(found)
    assert ranked is not None
    assert set(ranked.comparison.reliability) == {each.name for each in found.objectives}


def test_what_was_not_measured_is_one_line(study: StudyRecord) -> None:
    for asked, what in [
        ({"targets": ["phone"]}, "target 'phone' was not measured; measured were here"),
        ({"budgets": [decode(5, context=4096)]}, "needs a new study"),
        ({"objectives": [phrases.objective("joules_per_token")]}, "needs a new measurement"),
        ({"objectives": [phrases.objective("quality:piano")]}, "no score of category 'piano'"),
    ]:
        with pytest.raises(UserError, match=what) as caught:
            reranked(study, **asked)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_weights_order_by_worth_and_say_what_ties(study: StudyRecord) -> None:
    ranked = verdict(study)
    assert ranked is not None
    fastest = preferred(ranked, study.objectives, {"latency": 1.0})
    latencies = [each.row.place.estimates["latency"].mean for each in fastest]
    assert latencies == sorted(latencies)
    first = fastest[0]
    assert first.worth.mean == pytest.approx(-math.log2(latencies[0]))
    assert first.ties_with_best
    doubled = preferred(ranked, study.objectives, {"latency": 2.0, "quality": 0.0})
    assert [each.row for each in doubled] == [each.row for each in fastest]
    assert doubled[0].worth.mean == pytest.approx(2 * first.worth.mean)
    with pytest.raises(UserError, match="did you mean 'latency'"):
        preferred(ranked, study.objectives, {"latncy": 1.0})


def test_the_command_ranks_in_under_a_second_and_leaves_the_study_alone(
    folder: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = ["rerank", str(folder), "--budget", "decode_p50_ms <= 0.95x at 64"]
    CliRunner().invoke(app, [*arguments, "--json"])
    began = time.process_time()
    result = CliRunner().invoke(app, [*arguments, "--json", "--weight", "latency=1"])
    assert time.process_time() - began < 1.0
    told = json.loads(result.stdout)
    compared = {each["number"] for each in told["places"]} - {-1}
    rejected = {each["number"] for each in told["rejected"]}
    assert compared
    assert rejected
    assert not compared & rejected
    assert {each["number"] for each in told["preferred"]} <= compared
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(app, [*arguments, "--output", str(page), "--weight", "quality=1"])
    assert shown.exit_code == 0, shown.output
    assert "by these weights" in shown.stdout
    assert page.is_file()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    wrong = CliRunner().invoke(app, ["rerank", str(folder), "--budget", "speed < 3"])
    assert wrong.exit_code == 2
    assert wrong.stderr.count("\n") == 1
