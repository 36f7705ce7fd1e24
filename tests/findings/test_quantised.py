"""A front stack leads until quantising takes more of its quality than it leads by."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archloop import registry
from archloop.checkpoints.saving import save
from archloop.cli import app
from archloop.cli.quantised import _plain
from archloop.errors import UserError
from archloop.evals.base import Score
from archloop.findings import quantised
from archloop.findings.verdict import Verdict, verdict
from archloop.proxy import mixture, scoring
from archloop.proxy import quantised as engines
from archloop.runtimes.exporting import build_random
from archloop.search.study import Study
from archloop.stack.decoder import Decoder
from archloop.stack.spec import StackSpec
from archloop.store.folder import StudyFolder
from archloop.store.record import StudyRecord
from search.stand_in import StandIn, no_time, settings


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
    moved = found._replace(rows=rows)
    assert quantised.lead(study, moved, worse) == pytest.approx(-lead)
    scores = worse.trial.rungs[-1].scores
    exact = quantised.loss(study, moved, worse, ("a", "fp32"), scores, scores)
    assert (exact.lost, exact.is_marked) == (0.0, False)


def test_scores_that_overflow_lose_any_lead(study: StudyRecord, found: Verdict) -> None:
    row = next(r for r in quantised.front(found) if quantised.lead(study, found, r) is not None)
    scores = row.trial.rungs[-1].scores
    after = shifted(scores, math.nan)
    loss = quantised.loss(study, found, row, ("a", "int8"), scores, after)
    assert loss.is_marked
    assert json.loads(json.dumps(_plain(loss), allow_nan=False))["lost"] is None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, found: Verdict) -> list[StackSpec]:
    """What the command scores, which is noted and gets the scores of a trial."""
    specs: list[StackSpec] = []
    scores = found.rows[0].trial.rungs[-1].scores

    def evaluate(decoder: Decoder, *_: object) -> dict[str, Score]:
        specs.append(decoder.spec)
        return scores

    monkeypatch.setattr(mixture, "prepare", lambda *_: None)
    monkeypatch.setattr(scoring, "evaluate", evaluate)
    monkeypatch.setattr(engines, "scores", lambda *_: scores)
    return specs


def test_proxies_are_scored_beside_models_to_ship(
    folder: Path, found: Verdict, tmp_path: Path, asked: list[StackSpec]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "test"))
    for row in quantised.front(found):
        home = StudyFolder(copy).trial(row.trial.number)
        save(build_random(row.trial.proxy_spec, 1), home.weights, "archloop")
        save(build_random(row.trial.spec, 1), home.trained, "archloop")
    result = CliRunner().invoke(app, ["quantised", str(copy), "--json"])
    assert result.exit_code == 0, result.output
    assert asked == [row.trial.proxy_spec for row in quantised.front(found)]


def test_a_proxy_that_is_gone_takes_no_other_along(
    folder: Path, found: Verdict, tmp_path: Path, asked: list[StackSpec]
) -> None:
    gone, *others = quantised.front(found)
    assert others, "the front has several stacks"
    copy = Path(shutil.copytree(folder, tmp_path / "test"))
    for row in others:
        home = StudyFolder(copy).trial(row.trial.number)
        save(build_random(row.trial.proxy_spec, 1), home.weights, "archloop")
    result = CliRunner().invoke(app, ["quantised", str(copy), "--json"])
    assert result.exit_code == 0, result.output
    assert len(asked) == len(others)
    told = {each["number"] for each in json.loads(result.stdout)}
    assert told == {row.trial.number for row in others}
    assert str(gone.trial.number) in result.stderr
    assert "did not keep its proxy" in result.stderr.replace("\n", " ")


def test_tasks_may_be_the_studys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "tasks").mkdir(parents=True)
    (tmp_path / "own" / "tasks" / "mine.py").write_text(
        "from archloop.evals.tasks.memorization import Memorization\n\n\n"
        "class Mine(Memorization):\n    pass\n"
    )
    data = settings(num_trials=3, plugins="own")
    data["proxy"]["tasks"] = {"mine": {}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))
    Study(tmp_path / "recipe.yaml", tmp_path, evaluator=StandIn(), clock=no_time).run()
    # As in a process of its own.
    monkeypatch.setattr(registry, "_folders", {})

    def prepare(config: mixture.ProxyConfig, *_: object) -> None:
        mixture.vocab_size(config)
        raise UserError("far enough")

    monkeypatch.setattr(mixture, "prepare", prepare)
    result = CliRunner().invoke(app, ["quantised", str(tmp_path / "test")])
    assert "far enough" in result.stderr


def test_a_study_that_kept_no_proxies_says_so(folder: Path) -> None:
    result = CliRunner().invoke(app, ["quantised", str(folder)])
    assert result.exit_code == 2
    assert "did not keep its proxy" in result.stderr or "corpus" in result.stderr
