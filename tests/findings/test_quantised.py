"""A front stack leads until quantising takes more of its quality than it leads by."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.evals.base import Score
from archloop.findings import quantised
from archloop.findings.verdict import Verdict, verdict
from archloop.search.study import Study
from archloop.store.record import StudyRecord
from search.stand_in import StandIn


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyRecord:
    return Study.open(folder, evaluator=StandIn()).read()


@pytest.fixture(scope="module")
def found(study: StudyRecord) -> Verdict:
    told = verdict(study)
    assert told is not None
    return told


def shifted(scores: dict[str, Score], by: float) -> dict[str, Score]:
    return {n: s.model_copy(update={"value": s.value - by}) for n, s in scores.items()}


def test_only_what_loses_more_than_its_lead_is_marked(study: StudyRecord, found: Verdict) -> None:
    leads = {row.trial.number: quantised.lead(study, found, row) for row in found.rows}
    led = [row for row in quantised.front(found) if leads[row.trial.number] is not None]
    assert led, "some stack of the front has another below it"
    for row in led:
        lead = leads[row.trial.number]
        assert lead is not None
        assert lead > 0, "nothing dominates what is on the front"
        scores = row.trial.rungs[-1].scores
        by = 0.001
        least = quantised.loss(study, found, row, ("a", "int8"), scores, shifted(scores, by))
        assert least.lost > 0
        factor = lead / least.lost
        for share, marked in ((0.9, False), (1.1, True)):
            after = shifted(scores, by * factor * share)
            loss = quantised.loss(study, found, row, ("a", "int8"), scores, after)
            assert loss.lost == pytest.approx(lead * share, rel=1e-6)
            assert loss.is_marked == marked


def test_what_is_dominated_has_no_lead_to_lose(study: StudyRecord, found: Verdict) -> None:
    leads = {index: quantised.lead(study, found, row) for index, row in enumerate(found.rows)}
    index, lead = next((i, lead) for i, lead in leads.items() if lead is not None and lead > 0)
    row = found.rows[index]
    estimates = dict(row.place.estimates)
    quality = estimates[quantised.QUALITY]
    estimates[quantised.QUALITY] = quality.model_copy(update={"mean": quality.mean - 2 * lead})
    worse = row._replace(place=row.place._replace(estimates=estimates))
    rows = (*found.rows[:index], worse, *found.rows[index + 1 :])
    assert quantised.lead(study, found._replace(rows=rows), worse) == pytest.approx(-lead)


def test_a_study_that_kept_no_proxies_says_so(folder: Path) -> None:
    result = CliRunner().invoke(app, ["quantised", str(folder)])
    assert result.exit_code == 2
    assert "did not keep its proxy" in result.stderr or "corpus" in result.stderr
