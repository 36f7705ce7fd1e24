"""Tables of measured blocks: what they rule out is drawn again, what is left is measured."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archloop.profiling import piecework
from archloop.profiling.block_table import BlockTable
from archloop.profiling.predictor import Prediction, Predictor
from archloop.profiling.record import Figures, Interval, Profile
from archloop.runtimes.pieces import code_digest
from archloop.search import plan, screening
from archloop.search.plan import Plan
from archloop.search.recipe.recipe import Recipe, RecipeError
from archloop.search.study import Study
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack import cost
from archloop.stack.spec import StackSpec
from archloop.workers.deaths import WorkerError
from search.stand_in import CONTEXTS, IDENTITY, StandIn, recipe

MEASURED_ON = IDENTITY.model_copy(update={"runtime": "torch_eager"})
EXPENSIVE = "gqa"


def exact(value: float) -> Interval:
    return Interval(value=value, low=value * 0.999, high=value * 1.001)


def said(spec: StackSpec, home: Path) -> Profile:
    """A device where each block of attention takes a millisecond, and all else a hundredth."""
    (home / "asked").touch()
    count = spec.layout.count(EXPENSIVE)
    step = 0.1 + count + 0.01 * len(spec.blocks)
    figures = [
        Figures(
            context=context,
            ttft_ms=exact(10 * step),
            prefill_tok_per_s=exact(1.0),
            decode_p50_ms=exact(step),
            decode_p95_ms=exact(step),
            peak_memory_bytes=exact(1e8 + 4.0 * cost.num_params(spec)),
            engine_empty_bytes=exact(1e8),
        )
        for context in CONTEXTS
    ]
    return Profile(identity=MEASURED_ON, figures=tuple(figures), num_processes=5, seconds=1)


def table(folder: Path, of: Recipe) -> BlockTable:
    """Rows of all halves that some draws of the recipe's space have."""
    resolved, rng = plan.resolve(of), np.random.default_rng(0)
    specs = [to_spec(resolved.space, sample(resolved.space, rng), "ship") for _ in range(40)]
    wanted = piecework.halves(resolved.reference, specs)
    found = piecework.table(wanted, piecework.whole(specs, 4), said, folder)
    found.write(folder / "blocks.json")
    return found


def screened(folder: Path, section: Any = "blocks.json", **changes: Any) -> Recipe:
    found = recipe(tables={"here": section}, **changes)
    found._file = folder / "recipe.yaml"
    return found


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    table(tmp_path, recipe())
    asked = sorted(tmp_path.glob("*/asked"))
    damaged = asked[0].with_name("profile.json")
    damaged.write_text(damaged.read_text()[:100])
    for each in asked:
        each.unlink()
    table(tmp_path, recipe())
    assert sorted(tmp_path.glob("*/asked")) == asked[:1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(tmp_path, recipe())
    return tmp_path


def decode_ratio(resolved: Plan, spec: StackSpec) -> float:
    assert resolved.screen is not None
    predictor = resolved.screen.tables["here"].predictors[CONTEXTS[0]]
    found = predictor.predict(spec).decode_ms_estimate
    return found / predictor.predict(resolved.reference).decode_ms_estimate


def test_no_proposal_is_estimated_to_break_a_budget_by_more_than_the_slack(folder: Path) -> None:
    resolved = plan.resolve(screened(folder, initial=[]))
    without = plan.resolve(recipe(initial=[]))
    free = []
    for number in range(2, 12):
        spec = to_spec(resolved.space, resolved.strategy.ask(number, 0, []).genome, "ship")
        assert decode_ratio(resolved, spec) <= 1.1 * 1.02
        free.append(to_spec(resolved.space, without.strategy.ask(number, 0, []).genome, "ship"))
    assert any(decode_ratio(resolved, spec) > 1.1 * 1.02 for spec in free)
    assert resolved.screen is not None
    assert resolved.screen.num_ruled_out > 0
    (share,) = screening.shares_kept(resolved.screen, resolved.space, 0).values()
    assert 0 < share < 1


def test_what_was_ruled_out_takes_no_memory(folder: Path) -> None:
    """Of a tight budget thousands of random genomes are ruled out for one that is proposed."""
    strategy = plan.resolve(screened(folder)).strategy
    assert strategy.allows is not None
    genome = strategy.draw(np.random.default_rng(0))
    seen = weakref.ref(genome)
    strategy.allows(genome)
    del genome
    gc.collect()
    assert seen() is None


def test_what_is_to_be_tried_first_is_tried_whatever_is_estimated(folder: Path) -> None:
    layout = ["gqa"] * 4
    resolved = plan.resolve(screened(folder, initial=[layout]))
    proposal = resolved.strategy.ask(0, 0, [])
    assert (proposal.origin, list(to_spec(resolved.space, proposal.genome, "ship").layout)) == (
        "preset",
        layout,
    )
    assert resolved.screen is not None
    assert "decode_p50_ms" in (
        resolved.screen.obstacle(to_spec(resolved.space, proposal.genome, "ship")) or ""
    )


def test_a_device_that_is_not_here_screens_by_budgets_of_its_table(folder: Path) -> None:
    budget = {"metric": "ttft_ms", "limit": 25.0, "context": CONTEXTS[1]}
    tables = {"phone": {"files": ["blocks.json"], "budgets": [budget], "slack": 0.0}}
    found = recipe(tables=tables, initial=[])
    found._file = folder / "recipe.yaml"
    resolved = plan.resolve(found)
    for number in range(2, 8):
        spec = to_spec(resolved.space, resolved.strategy.ask(number, 0, []).genome, "ship")
        # Ten milliseconds a block of attention, and the ends.
        assert spec.layout.count(EXPENSIVE) <= 2


def test_memory_is_estimated_as_it_is_limited_with_the_engine(folder: Path) -> None:
    budget = {"metric": "peak_memory_bytes", "limit": 1.0}
    resolved = plan.resolve(
        screened(folder, {"files": ["blocks.json"], "budgets": [budget]}, budgets=[])
    )
    assert resolved.screen is not None
    predictor: Predictor = resolved.screen.tables["here"].predictors[CONTEXTS[0]]
    found: Prediction = predictor.predict(resolved.reference)
    expected = 1e8 + 4 * cost.num_params(resolved.reference)
    assert found.peak_memory_bytes_estimate == pytest.approx(expected, rel=0.01)
    assert found.memory_bytes_estimate == pytest.approx(expected - 1e8, rel=0.01)


def test_a_study_measures_what_is_left_and_says_how_much_was_ruled_out(folder: Path) -> None:
    evaluator = StandIn()
    found = Study(screened(folder, num_trials=6), folder / "runs", evaluator=evaluator).run()
    originals = [trial for trial in found.trials if trial.replicates is None]
    assert len(originals) == 6
    assert sum(trial.num_ruled_out for trial in originals) > 0
    # Figures are the evaluator's: an estimate has no place in a record.
    assert all(trial.profiles for trial in originals)
    again = Study(screened(folder, num_trials=6), folder / "again", evaluator=StandIn()).run()
    assert [t.spec for t in again.trials] == [t.spec for t in found.trials]
    assert [t.num_ruled_out for t in again.trials] == [t.num_ruled_out for t in found.trials]


def test_another_table_is_another_study(folder: Path) -> None:
    before = screened(folder).digest
    table_file = folder / "blocks.json"
    rows = BlockTable.model_validate_json(table_file.read_bytes()).rows
    BlockTable(rows=rows[:-1]).write(table_file)
    assert screened(folder).digest != before
    assert recipe().digest == recipe(tables={}).digest


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("lost.json", r"tables\.here: table .*lost\.json does not exist"),
        ({"files": ["blocks.json"], "device": "phone"}, r"no rows of .*device phone; there are"),
        (
            {"files": ["blocks.json"], "budgets": [{"metric": "decode_p95_ms", "limit": 1.0}]},
            r"no table predicts decode_p95_ms",
        ),
    ],
)
def test_tables_that_cannot_screen_are_refused(section: Any, message: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        plan.resolve(screened(folder, section))


def test_a_table_that_limits_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="nothing is limited"):
        plan.resolve(screened(folder, budgets=[]))


def test_rows_of_graphs_that_other_code_exported_are_told_and_never_mixed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "blocks.json"
    plan.resolve(screened(folder))
    assert "tables.here: its rows do not say which code exported" in caplog.text
    content = json.loads(file.read_text())
    for row in content["rows"]:
        row["where"]["written_by"] = f"1 {code_digest()}"
    (folder / "new.json").write_text(json.dumps(content))
    caplog.clear()
    plan.resolve(screened(folder, "new.json"))
    assert "tables.here" not in caplog.text
    with pytest.raises(RecipeError, match="different code exported, by code that is not known and"):
        plan.resolve(screened(folder, ["blocks.json", "new.json"]))


def test_measurements_of_pieces_are_not_taken_twice(tmp_path: Path) -> None:
    first = table(tmp_path, recipe())
    for asked in tmp_path.rglob("asked"):
        asked.unlink()
    assert table(tmp_path, recipe()) == first
    assert not list(tmp_path.rglob("asked"))


def test_what_the_engine_refuses_is_left_out_of_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(spec: StackSpec, home: Path) -> Profile:
        if EXPENSIVE in spec.layout:
            raise WorkerError("unsupported", "no attention here", "candidate")
        return said(spec, home)

    wanted = piecework.halves(plan.resolve(recipe()).reference, [])
    found = piecework.table(wanted, (), refusing, tmp_path)
    assert found.rows
    assert not any(EXPENSIVE in row.spec.layout for row in found.rows)
    assert "left out of the table: no attention here" in caplog.text
