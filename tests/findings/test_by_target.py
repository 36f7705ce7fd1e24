"""A study of two targets seen one by one: a front on each, and where they disagree."""

import math

import pytest

from archloop.findings.rerank import reranked
from archloop.findings.targets import by_target, fastest
from archloop.findings.together import worst_of_all
from archloop.findings.verdict import verdict
from archloop.profiling.record import Interval, Profile
from archloop.ranking.record import Readings
from archloop.report import by_target as told
from archloop.report.summary import summarize
from archloop.store.record import StudyRecord, TrialRecord
from report import studies

LATENCY = {0: (0.95, 0.60), 1: (0.70, 1.10), 3: (0.80, 0.80), 5: (0.85, 0.85)}
"""Of each trained trial: the ratio to the reference on host, and on the phone."""


def narrow(value: float) -> Interval:
    return Interval(value=value, low=0.98 * value, high=1.02 * value)


def on(ratio: float) -> Profile:
    found = studies.profile(ratio)
    update = {"latency_ratio": narrow(ratio), "memory_ratio": narrow(1.0)}
    return found.model_copy(update=update)


def measured(trial: TrialRecord) -> TrialRecord:
    host, phone = LATENCY.get(trial.number, (1.0, 1.0))
    profiles = {"host": on(host), "phone": on(phone)}
    return trial.model_copy(update={"profiles": profiles})


@pytest.fixture
def study() -> StudyRecord:
    one = studies.study()
    assert one.reference is not None
    odd = one.trials[3]
    trials = [measured(trial) for trial in one.trials if trial.number != odd.number]
    left = {"phone": "the phone cannot run block 2"}
    update = {"profiles": {"host": on(LATENCY[odd.number][0])}, "left_out": left}
    trials.insert(3, odd.model_copy(update=update))
    update = {"trials": tuple(trials), "reference": measured(one.reference)}
    return one.model_copy(update=update)


def test_each_target_has_its_own_estimates_and_fastest_stack(study: StudyRecord) -> None:
    found = by_target(study)
    assert found is not None
    host, phone = found.verdicts["host"], found.verdicts["phone"]
    assert host is not None
    assert phone is not None
    assert fastest(host).trial.number == 1
    assert fastest(phone).trial.number == 0
    for found_on, column in ((host, 0), (phone, 1)):
        for row in found_on.rows:
            expected = LATENCY[row.trial.number][column]
            assert row.place.estimates["latency"].mean == pytest.approx(expected, rel=1e-3)
    assert phone.row(3) is None


def test_pairs_that_targets_order_differently_beyond_doubt_are_named(study: StudyRecord) -> None:
    found = by_target(study)
    assert found is not None
    pairs = {(each.one, each.other): each for each in found.disagreements}
    assert pairs[0, 1].one_faster_on == ("phone",)
    assert pairs[0, 1].other_faster_on == ("host",)
    # Of trial 3 the phone knows nothing.
    assert all(3 not in pair for pair in pairs)
    assert found.left_out == {"host": {}, "phone": {3: "the phone cannot run block 2"}}


def test_the_worst_target_of_replicates_is_read_over_all_of_them(study: StudyRecord) -> None:
    """Each target is 1.1 in the mean; the mean of what was worst in each replicate is 1.2."""
    runs = [{"host": on(1.0), "phone": on(1.2)}, {"host": on(1.2), "phone": on(1.0)}]
    values, wanted = studies.objectives(0.5, 1.2, 1.0), study.objectives
    (found,) = worst_of_all([values], runs, wanted)
    assert found.mean("latency") == pytest.approx(math.sqrt(1.2))
    assert (found.mean("quality"), found.values["latency"].n) == (0.5, 6)
    on_one = [{"host": run["host"]} for run in runs]
    assert list(worst_of_all([values], on_one, wanted)) == [values]
    lost = [runs[0], {"host": on(1.2)}]
    assert list(worst_of_all([values], lost, wanted)) == [values]
    again = [
        studies.trial(
            number, "CCCC", by_rung=(values,), origin="replicate", replicates=0, profiles=run
        )
        for number, run in zip((6, 7), runs, strict=True)
    ]
    told_all = verdict(study.model_copy(update={"trials": (*study.trials, *again)}))
    assert told_all is not None
    row = told_all.row(0)
    assert row is not None
    assert row.place.estimates["latency"].mean < 1.15


def test_reports_say_it_and_studies_of_one_target_do_not(study: StudyRecord) -> None:
    found = by_target(study)
    assert found is not None
    lines = list(told.lines(found))
    assert any(line.startswith("on phone alone: ") and "fastest 0 (0.600" in line for line in lines)
    assert "targets disagree: 0 is faster than 1 on phone, slower on host" in lines
    plain = summarize(study)["by_target"]
    assert plain["targets"]["phone"]["fastest"] == 0
    assert plain["targets"]["phone"]["left_out"] == {"3": "the phone cannot run block 2"}
    assert summarize(studies.study())["by_target"] is None


def test_budgets_of_one_target_leave_the_others_to_be_seen_alone(study: StudyRecord) -> None:
    """What is limited on the phone alone limits nothing on the host."""
    budgets = [
        {"metric": "decode_p50_ms", "limit": 9.0, "target": "phone"},
        {"metric": "peak_memory_bytes", "limit": 1e12, "context": 1024},
    ]
    limited = study.model_copy(update={"recipe": {**study.recipe, "budgets": budgets}})
    found = by_target(limited)
    assert found is not None
    assert set(found.verdicts) == {"host", "phone"}
    told = reranked(limited, targets=["host"])
    assert [each["metric"] for each in told.record.recipe["budgets"]] == ["peak_memory_bytes"]
    assert "decode_p50_ms <= 9 on phone" in told.unknown[-1]
    assert not reranked(limited).unknown


def test_where_quality_is_not_ranked_no_target_has_a_front(study: StudyRecord) -> None:
    loud = study.model_copy(update={"noise": ({"quality": Readings(mean=0.5, sd=0.15, n=9)},)})
    found = by_target(loud)
    assert found is not None
    lines = [line for line in told.lines(found) if " alone: " in line]
    assert [line.partition("; ")[0] for line in lines] == [
        "on host alone: quality is not ranked",
        "on phone alone: quality is not ranked",
    ]
    assert "fastest 1 (0.700" in lines[0]
