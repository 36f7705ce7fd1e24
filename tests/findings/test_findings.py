"""A study in Python: its trials, its front, rows and frames, other terms, a notebook's table."""

import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

import archloop
from archloop.errors import UserError
from archloop.findings.findings import Findings
from archloop.findings.together import together
from archloop.profiling.record import Profile
from archloop.profiling.statistics import interval
from archloop.report.outcome import print_outcome
from archloop.report.summary import summarize
from archloop.search.study import Study
from report import studies
from search.stand_in import StandIn, no_time, settings


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Made of a dict, by paths that are strings, opened again by its folder alone."""
    runs = str(tmp_path_factory.mktemp("runs"))
    made = archloop.Study(settings(num_trials=6), runs, evaluator=StandIn(), clock=no_time)
    made.run()
    return archloop.Study.open(f"{runs}/test")


def test_the_front_is_what_the_report_calls_so() -> None:
    record = studies.study()
    found = Findings(record)
    assert [trial.number for trial in found.front] == summarize(record)["front"] == [1, 5, 0]
    assert found.trials == record.trials
    assert found.verdict is not None


def test_a_replicated_stacks_figures_are_those_of_its_replicates(tmp_path: Path) -> None:
    record = studies.study()
    values = studies.objectives(0.50, 0.71, 0.6)
    again = [
        studies.trial(
            number, "CCCC", scale=1.2, by_rung=(values,), origin="replicate", replicates=1
        )
        for number in (6, 7)
    ]
    record = record.model_copy(update={"trials": (*record.trials, *again)})
    found = Findings(record).verdict
    assert found is not None
    row, other = found.row(1), found.row(3)
    assert row is not None
    assert other is not None
    own, profile = row.trial.profiles["host"], row.profiles["host"]
    assert own.figures[-1].decode_p50_ms.value == pytest.approx(4.0)
    assert profile.num_processes == 2 * own.num_processes
    both, alone = (each.figures[-1].decode_p50_ms for each in (profile, again[0].profiles["host"]))
    assert both.value == pytest.approx(4.8)
    assert profile.latency_ratio is not None
    assert profile.latency_ratio.value == pytest.approx(1.2)
    # Six processes tell more than three.
    assert 1 < both.high / both.low < alone.high / alone.low
    assert other.profiles == other.trial.profiles
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    print_outcome(record, None, console)
    assert re.search(r"│ 1 .* 4\.80 ", console.export_text())


def test_energy_of_replicates_is_of_the_processes_that_counted_it() -> None:
    """Two of three processes did in each replicate."""
    counted = ((1.0, 1.2), (1.1, 1.5))
    runs = []
    for values in counted:
        profile = studies.profile(1.0)
        figures = [
            at.model_copy(update={"joules_per_token": interval(values)}) for at in profile.figures
        ]
        ratios = {"256": {"joules_per_token": interval(values)}}
        update = {"figures": tuple(figures), "ratios": ratios, "num_energy_processes": 2}
        runs.append({"host": profile.model_copy(update=update)})
    found = together(runs)["host"]
    assert (found.num_processes, found.processes_behind("joules_per_token")) == (6, 4)
    wanted = interval([value for values in counted for value in values])
    for own in (found.figures[0].joules_per_token, found.ratios["256"]["joules_per_token"]):
        assert own is not None
        assert own.value == pytest.approx(wanted.value)
        assert (own.low, own.high) == pytest.approx((wanted.low, wanted.high))
    assert together([{"host": studies.profile(1.0)}] * 2)["host"].num_energy_processes is None


def test_a_trial_beside_its_replicate_shows_how_trainings_differ() -> None:
    """Of quality, which each reads once; its latency was read by several processes in each."""
    record = studies.study()
    before = Findings(record).verdict
    values = studies.objectives(0.50, 0.71, 0.6)
    again = studies.trial(6, "CCCC", by_rung=(values,), origin="replicate", replicates=1)
    after = Findings(record.model_copy(update={"trials": (*record.trials, again)})).verdict
    assert before is not None
    assert after is not None
    df = {name: each.total_df for name, each in before.comparison.pools.items()}
    assert {name: each.total_df for name, each in after.comparison.pools.items()} == {
        **df,
        "quality": df["quality"] + 1,
    }
    # Trained at .40 and .50 where the anchors' trainings differ by .01.
    noise = (df["quality"] * 0.01**2 + 0.1**2 / 2) / (df["quality"] + 1)
    assert after.comparison.pools["quality"].value == pytest.approx(noise)
    row = after.row(1)
    assert row is not None
    assert row.place.estimates["quality"].mean == 0.50
    # A second replicate adds one degree of freedom, not two.
    more = studies.trial(7, "CCCC", by_rung=(values,), origin="replicate", replicates=1)
    both = Findings(record.model_copy(update={"trials": (*record.trials, again, more)})).verdict
    assert both is not None
    assert both.comparison.pools["quality"].total_df == df["quality"] + 2


@pytest.mark.parametrize(("limit", "broken"), [(4.1, ["at 256", "at 1024"]), (6.0, [])])
def test_budgets_are_held_to_profiles_whose_readings_a_record_lacks(
    limit: float, broken: list[str]
) -> None:
    """Every profile's decode step takes 4 ms, with a 95% interval from 3.88 to 4.16."""
    record = studies.study()
    assert not any(trial.readings for trial in record.trials)
    budget = {"metric": "decode_p50_ms", "limit": limit}
    record = record.model_copy(update={"recipe": {**record.recipe, "budgets": [budget]}})
    found = Findings(record)
    assert found.verdict is not None
    named = [f"decode_p50_ms {where} on host" for where in broken]
    assert all(list(row.may_break) == named for row in found.verdict.rows)


@pytest.mark.parametrize("limits", [(4.1,), (4.1, 6.0), (6.0, 4.1)])
def test_of_several_budgets_on_one_figure_the_tightest_counts(limits: tuple[float, ...]) -> None:
    record = studies.study()
    budgets = [{"metric": "decode_p50_ms", "limit": limit} for limit in limits]
    record = record.model_copy(update={"recipe": {**record.recipe, "budgets": budgets}})
    found = Findings(record).verdict
    assert found is not None
    named = ("decode_p50_ms at 256 on host", "decode_p50_ms at 1024 on host")
    assert all(row.may_break == named for row in found.rows)


def test_a_frame_has_a_row_a_trial(study: Study) -> None:
    pandas = pytest.importorskip("pandas")
    frame = study.to_frame()
    assert list(frame.index) == ["reference", *(trial.number for trial in study.trials)]
    for trial in study.trials:
        row = frame.loc[trial.number]
        assert row["layout"] == " ".join(trial.spec.layout)
        figures = trial.profiles["here"].figures[0]
        assert row["here/64/ttft_ms"] == figures.ttft_ms.value
        assert row["here/64/ttft_ms_low"] < row["here/64/ttft_ms"] < row["here/64/ttft_ms_high"]
        assert pandas.isna(row["latency"]) == (trial.state != "complete")
    assert frame.loc["reference", "latency"] == 1.0


def test_without_pandas_a_line_says_what_to_do(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archloop.findings.findings.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install pandas, or take \.rows\(\)"):
        study.to_frame()
    rows = study.rows()
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_a_notebook_shows_a_table_of_stacks() -> None:
    shown = Findings(studies.study())._repr_html_()
    body = re.findall("<tr><td>([^<]*)</td>", shown)
    # Fastest first; what was not compared comes last.
    assert body[:2] == ["1", "3"]
    assert set(body[-2:]) == {"2", "4"}
    assert "<killed>" not in shown


def test_other_terms_are_findings_too(study: Study) -> None:
    again = study.rerank(budgets=["decode_p50_ms <= 0.95x at 64"], objectives=["memory"])
    states = {trial.number: trial.state for trial in again.trials}
    assert "rejected" in states.values()
    assert again.rerank(budgets=[]).unknown
    assert len(again.rows()) == 1 + len(study.trials)


def test_settings_are_at_top_level() -> None:
    assert archloop.Target(contexts=(8,)).contexts == (8,)
    assert archloop.Budget(metric="ttft_ms", limit=1.0).limit == 1.0
    assert archloop.load_recipe(settings()).name == "test"
    assert archloop.Recipe.model_validate(settings()).name == "test"
    with pytest.raises(ValueError, match=r"recipe 'test': nmu_trials: unknown key"):
        archloop.load_recipe({**settings(), "nmu_trials": 3})
    for name in archloop.__all__:
        assert getattr(archloop, name) is not None


@pytest.mark.filterwarnings("ignore")
def test_a_measurement_in_one_call_needs_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "spec.json"
    file.write_text(studies.spec("CA").to_json())
    config = archloop.ProfileConfig(
        processes=2, warmup_steps=1, timed_steps=4, prefill_repeats=1, ready_timeout_s=0
    )
    found = archloop.profile(
        str(file), config=config, contexts=[16], runtime="torch_eager", threads=1
    )
    assert isinstance(found, Profile)
    assert [figures.context for figures in found.figures] == [16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.json"]
    with pytest.raises(UserError, match="give Target or contexts, not both"):
        archloop.profile(str(file), archloop.Target(), contexts=[16])
    with pytest.raises(UserError, match=r"profile\.contexts"):
        archloop.profile(str(file), contexts=["many"])  # type: ignore[list-item]
    assert "pandas" not in vars(sys.modules["archloop.findings.findings"])
