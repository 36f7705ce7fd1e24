"""Attribution finds what was put in, claims nothing of noise, and shares add up."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.findings.attribution import Attribution, attribution
from archloop.proxy.record import Rung, TrainJob
from archloop.ranking.estimates import pools
from archloop.ranking.objectives import OBJECTIVES
from archloop.ranking.record import Objective, Objectives, Readings
from archloop.ranking.regression import fit
from archloop.ranking.shapley import shapley
from archloop.ranking.variance import Pool
from archloop.report.attributed import attributed
from archloop.search import design
from archloop.search.recipe.recipe import load
from archloop.search.study import Study
from archloop.store.record import StudyRecord
from report import studies
from search.stand_in import StandIn, no_time, recipe, settings


def made(slow: float, noise: float, count: int = 24, seed: int = 0) -> StudyRecord:
    """Each block of attention makes a stack slower by a factor; quality is noise alone."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        pattern = "".join(rng.choice(["C", "A"], 4))
        latency = 0.8 * math.exp(slow * pattern.count("A") + noise * rng.standard_normal())
        read = {
            "quality": Readings(mean=0.5 + noise * rng.standard_normal()),
            "latency": Readings(mean=latency, sd=noise * latency, n=2),
            "memory": Readings(mean=0.9, sd=0.9 * noise, n=2),
        }
        values = Objectives(values=read)
        measured = {name: read[name] for name in ("latency", "memory")}
        trials.append(
            studies.trial(number, pattern, by_rung=(values,), readings=measured, profiles={})
        )
    noisy = ({"quality": Readings(mean=0.5, sd=noise, n=9)},)
    return studies.study().model_copy(update={"trials": tuple(trials), "noise": noisy})


def clear(found: Attribution, factor: str) -> set[tuple[str, str]]:
    return {(c.what, c.objective) for c in found.contributions if c.factor == factor and c.is_clear}


def test_a_family_that_slows_every_block_is_found_and_by_how_much() -> None:
    found = attribution(made(slow=0.1, noise=0.01))
    assert clear(found, "family") == {("gqa", "latency"), ("short_conv", "latency")}
    by_family = {
        c.what: c for c in found.contributions if (c.factor, c.objective) == ("family", "latency")
    }
    # Between a block of one and of the other lies the factor that was put in.
    factor = (1 + by_family["gqa"].value) / (1 + by_family["short_conv"].value)
    assert factor == pytest.approx(math.exp(0.1), abs=0.01)
    # Where a block stands makes no difference here.
    assert len(clear(found, "position")) <= 1


def test_what_all_differences_come_from_explains_them_and_noise_explains_nothing() -> None:
    found = attribution(made(slow=0.1, noise=0.01))
    explained = dict.fromkeys(("quality", "latency"), 0.0)
    for each in found.contributions:
        if each.factor == "family" and each.objective in explained:
            explained[each.objective] += each.importance
    assert 0.95 < explained["latency"] <= 1.0
    assert explained["quality"] < 0.3


def test_of_noise_little_is_claimed() -> None:
    claims = sum(len(clear(attribution(made(0.0, 0.05, seed=seed)), "family")) for seed in range(8))
    # Of 48 intervals of 95%.
    assert claims <= 8


def test_shares_add_up_and_what_breaks_budgets_adds_nothing() -> None:
    study = made(slow=0.1, noise=0.001)
    found = attribution(study)
    assert math.isclose(sum(share.value for share in found.shares), found.volume, rel_tol=1e-6)
    trials = [
        trial.model_copy(update={"state": "rejected", "by_rung": ()})
        if trial.spec.layout.count("gqa") > 1
        else trial
        for trial in study.trials
    ]
    again = attribution(study.model_copy(update={"trials": tuple(trials)}))
    assert math.isclose(sum(share.value for share in again.shares), again.volume, rel_tol=1e-6)
    assert again.volume <= found.volume + 1e-9
    alone = {share.family: share.num_alone for share in again.shares}
    assert alone.get("gqa", 0) == 0
    # What was rejected was measured all the same, and still tells of latency.
    assert ("gqa", "latency") in clear(again, "family")


def test_replicates_show_noise_that_the_anchor_stacks_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two trials' replicates lie .2 and .4 of quality from them; the anchors' noise is .001."""
    pooled: list[dict[str, Pool]] = []

    def kept(stacks: Iterable[Mapping[str, Readings]]) -> dict[str, Pool]:
        pooled.append(pools(stacks))
        return pooled[-1]

    monkeypatch.setattr("archloop.findings.attribution.pools", kept)
    study = made(slow=0.1, noise=0.001)
    trials = []
    for trial, far in zip(study.trials[:2], (0.2, 0.4), strict=True):
        read = trial.by_rung[0].values
        quality = Readings(mean=read["quality"].mean + far)
        more = {"number": 24 + trial.number, "replicates": trial.number}
        values = Objectives(values={**read, "quality": quality})
        trials.append(trial.model_copy(update={**more, "by_rung": (values,)}))
    several = study.model_copy(update={"trials": (*study.trials, *trials)})
    attribution(study, num_draws=2)
    attribution(several, num_draws=2)
    # The same stacks in another study may be the same draws.
    attribution(study, [several.model_copy(update={"trials": tuple(trials)})], num_draws=2)
    alone, replicated, beside = pooled
    assert (alone["quality"].total_df, replicated["quality"].total_df) == (8, 10)
    assert replicated["quality"].value > alone["quality"].value
    assert beside["quality"] == alone["quality"]


def test_with_two_stacks_nothing_is_said() -> None:
    with pytest.raises(UserError, match="attribution needs 3 at least"):
        attribution(made(0.1, 0.01, count=2))


def test_shapley_of_a_game_that_is_known() -> None:
    """A glove game: left gloves a and b, one right glove c (Shapley: 1/6, 1/6, 4/6)."""

    def worth(coalition: frozenset[str]) -> np.ndarray:
        return np.array([float(min(len(coalition & {"a", "b"}), len(coalition & {"c"})))])

    shares = shapley(["a", "b", "c"], worth)
    assert [float(shares[p][0]) for p in "abc"] == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    # Many players: by drawn orders, still adding up to the whole.
    players = [f"p{i}" for i in range(10)]
    additive = shapley(players, lambda c: np.array([float(sum(int(p[1:]) for p in c))]))
    assert [float(additive[p][0]) for p in players] == pytest.approx(list(range(10)))


def test_a_fit_shrinks_what_the_data_do_not_tell() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 3))
    told = fit(x, 2 * x[:, 0] + 0.01 * rng.standard_normal(40), np.full(40, 0.01))
    assert told.mean_K == pytest.approx([2, 0, 0], abs=0.02)
    noise = fit(x, rng.standard_normal(40), np.zeros(40))
    assert float(np.abs(noise.mean_K).max()) < 0.4
    with pytest.raises(ValueError, match="three finite ones"):
        fit(x[:2], np.ones(2), np.zeros(2))


def test_the_command_tells_and_draws(tmp_path: Path) -> None:
    Study(recipe(num_trials=8, budgets=[]), tmp_path, evaluator=StandIn(), clock=no_time).run()
    picture = tmp_path / "picture.svg"
    call = ["attribute", str(tmp_path / "test"), "--figure", str(picture)]
    shown = CliRunner().invoke(app, [*call, "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    factors = {each["factor"] for each in told["contributions"]}
    assert factors == {"family", "position", "gene"}
    assert {each["family"] for each in told["shapley"]} <= {"short_conv", "gqa"}
    assert told["by_design"] == 0
    assert b"share of the hypervolume" in picture.read_bytes() or picture.stat().st_size > 5000
    assert "short_conv" in CliRunner().invoke(app, call).stdout


def test_the_command_runs_the_design_beside_a_study_that_was_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings(num_trials=4, budgets=[])))
    given = load(tmp_path / "recipe.yaml")
    Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    (tmp_path / "test").rename(tmp_path / "other")
    evaluator = StandIn()
    monkeypatch.setattr(Study, "_hardware", lambda _: evaluator)
    call = ["attribute", str(tmp_path / "other"), "--design", "--json"]
    # What cannot be drawn is refused before anything is measured.
    refused = CliRunner().invoke(app, [*call, "--figure", "picture.bmp"])
    assert (refused.exit_code, evaluator.calls) == (2, [])
    assert "picture.bmp: draws .svg, .png, .pdf" in refused.stderr
    told = json.loads(CliRunner().invoke(app, call).stdout)
    assert told["by_design"] == 3
    assert (tmp_path / "other-design").is_dir()
    # The same command finds all of it done, and without --design it counts too.
    calls = len(evaluator.calls)
    assert json.loads(CliRunner().invoke(app, call).stdout) == told
    call.remove("--design")
    assert json.loads(CliRunner().invoke(app, call).stdout) == told
    assert evaluator.calls[calls:] == ["close"]
    # Also where the study is the working directory.
    monkeypatch.chdir(tmp_path / "other")
    assert json.loads(CliRunner().invoke(app, ["attribute", ".", "--json"]).stdout) == told


def test_a_design_is_a_study_beside_that_counts_too(tmp_path: Path) -> None:
    Study(recipe(num_trials=4, budgets=[]), tmp_path, evaluator=StandIn(), clock=no_time).run()
    planned = design.by_design(Study.open(tmp_path / "test").recipe)
    assert planned.name == "test-design"
    assert list(planned.initial) == [
        ("short_conv",) * 4,
        ("gqa",) * 4,
        ("short_conv", "gqa", "short_conv", "gqa"),
    ]
    Study(planned, tmp_path, evaluator=StandIn(), clock=no_time).run()
    shown = CliRunner().invoke(app, ["attribute", str(tmp_path / "test"), "--json"])
    told = json.loads(shown.stdout)
    assert told["by_design"] == 3
    assert {each["family"] for each in told["shapley"] if each["num_alone"]} == {
        "short_conv",
        "gqa",
    }


def test_scores_under_a_name_of_their_own_contribute_points_and_no_percent() -> None:
    study = made(slow=0.1, noise=0.01)
    recall = Objective(name="recall", direction="maximize", figure="quality:recall")

    def more(values: Objectives) -> Objectives:
        return Objectives(values={**values.values, "recall": values.values["quality"]})

    trials = tuple(
        each.model_copy(update={"by_rung": (more(each.by_rung[0]),)}) for each in study.trials
    )
    assert study.reference_point is not None
    wanted = [each.model_dump() for each in (*OBJECTIVES, recall)]
    changes = {
        "trials": trials,
        "reference_point": more(study.reference_point),
        "recipe": {**study.recipe, "objectives": wanted},
    }
    found = attributed(study.model_copy(update=changes))
    cell = found.tables[0].rows[0][1][found.objectives.index("recall")]
    assert cell is not None
    assert "%" not in cell.text


class Lost(StandIn):
    """Trainings of designed stacks diverge."""

    def train(self, job: TrainJob, directory: Path) -> Rung:
        rung = super().train(job, directory)
        if "-design/trials" not in str(directory):
            return rung
        return rung.model_copy(update={"diverged": True, "scores": {}})


def test_a_design_none_of_which_is_feasible_counts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings(num_trials=4, budgets=[])))
    given = load(tmp_path / "recipe.yaml")
    Study(given, tmp_path, evaluator=StandIn(), clock=no_time).run()
    monkeypatch.setattr(Study, "_hardware", lambda _: Lost())
    shown = CliRunner().invoke(app, ["attribute", str(tmp_path / "test"), "--design", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["by_design"] == 3
