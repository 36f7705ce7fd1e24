"""What is said of a study before it begins, from a stand-in for devices and trainings."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.search import outlook, plan
from archloop.search.evaluator import CandidateFailed
from archloop.search.recipe import recipe as recipes
from search.stand_in import StandIn, recipe, settings


@pytest.fixture(scope="module")
def resolved() -> plan.Plan:
    return plan.resolve(recipe())


def test_a_probe_measures_once_and_trains_reference_and_anchors(
    resolved: plan.Plan, tmp_path: Path
) -> None:
    evaluator, said = StandIn(), []
    found = outlook.probe(resolved, evaluator, tmp_path, said.append)
    assert [call.split()[0] for call in evaluator.calls if "profile" in call] == ["profile"]
    assert list(found.quality) == ["reference", "all short_conv", "all gqa"]
    assert len(evaluator.calls) == 1 + 3 * outlook.PROBE_SEEDS
    assert all(estimate.n == outlook.PROBE_SEEDS for estimate in found.quality.values())
    assert "text and tokenizer" in said


def test_noise_decides_what_the_gate_resolves_and_seeds_a_ranking_takes(
    resolved: plan.Plan, tmp_path: Path
) -> None:
    class Noisy(StandIn):
        def train(self, job, directory):
            rung = super().train(job, directory)
            shift = 0.3 * int(directory.name[-1])
            scores = {
                name: score.model_copy(update={"value": score.value - shift})
                for name, score in rung.scores.items()
            }
            return rung.model_copy(update={"scores": scores})

    quiet = outlook.probe(resolved, StandIn(), tmp_path, lambda _: None)
    noisy = outlook.probe(resolved, Noisy(), tmp_path, lambda _: None)
    assert noisy.reliability < quiet.reliability
    # 2 processes that differ by 8%, 4 after two looks, 1 degree of freedom: t is 12.7.
    figure = "decode_p50_ms/reference at 64 on here"
    assert quiet.resolved[figure] == pytest.approx(0.662, abs=0.01)


class Diverging(StandIn):
    """Stacks of convolutions alone diverge."""

    def train(self, job, directory):
        rung = super().train(job, directory)
        lost = {"diverged": True, "scores": {}}
        return rung.model_copy(update=lost) if "gqa" not in job.spec.layout else rung


def test_a_probe_of_which_a_training_diverges_says_of_which_stack(
    resolved: plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "all short_conv: its training diverged; lower proxy.training.learning_rate"
    with pytest.raises(CandidateFailed, match=said):
        outlook.probe(resolved, Diverging(), tmp_path, lambda _: None)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(settings()))
    monkeypatch.setattr("archloop.search.hardware.HardwareEvaluator", lambda *_: Diverging())
    shown = CliRunner().invoke(app, ["plan", str(path)])
    assert (shown.exit_code, f"the probe failed: {said}" in shown.stderr) == (1, True)


def test_a_probe_whose_measurement_fails_says_so_of_the_reference(
    resolved: plan.Plan, tmp_path: Path
) -> None:
    with pytest.raises(CandidateFailed, match="reference: worker: exit status 1"):
        outlook.probe(resolved, StandIn(fails="profile "), tmp_path, lambda _: None)


def test_time_adds_up_over_stages(resolved: plan.Plan) -> None:
    found = outlook.Probe(10.0, 4.0, {}, {}, {}, 0.9, 1)
    stages = outlook.seconds(resolved, found)
    assert stages["profile"] == pytest.approx(14 * 10 * 1.1)
    # Half of the trials go on to twice the steps, a quarter to four times.
    assert stages["train"] == pytest.approx(14 * (4 + 8 * 0.5 + 16 * 0.25))
    # Three stacks three times, and the reference twice and four times as long.
    assert stages["reference"] == 10 + 3 * 3 * 4 + 8 + 16
    assert stages["tune"] == 0


def test_time_is_shared_by_workers_and_spent_on_replicates() -> None:
    found = outlook.Probe(10.0, 4.0, {}, {}, {}, 0.9, 1)
    alone = outlook.seconds(plan.resolve(recipe()), found)
    two = outlook.seconds(plan.resolve(recipe(executor={"workers": 2})), found)
    # Two at once train twice as fast; a device is measured by one at a time.
    assert two["train"] == alone["train"] / 2
    assert two["profile"] == alone["profile"]
    claimed = plan.resolve(recipe(replicates=3, seeds=2, executor={"workers": 2}))
    assert outlook.claim_seconds(claimed, found) == 3 * (10 + 2 * 4 / 2)


def test_what_a_probe_on_a_machine_of_32_cores_foretold_came_about() -> None:
    """The quickstart on two of them: 513, 493 and 528 s of three seeds that ran to their end.

    None of these could rank quality, so none replicated anything (`docs/results/quickstart.md`).
    """
    path = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    quickstart = plan.resolve(recipes.load(path))
    found = outlook.Probe(35.4, 14.7, {}, {}, {}, 0.97, 1)
    assert sum(outlook.seconds(quickstart, found).values()) == pytest.approx(511, rel=0.1)


def test_the_command_checks_the_recipe_and_says_what_would_be_done(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(settings()))
    shown = CliRunner().invoke(app, ["plan", str(path), "--no-probe"])
    assert shown.exit_code == 0
    assert "measured on here" in shown.output
    assert "budget: decode_p50_ms <= 1.02 x reference" in shown.output
    assert (
        "trained: 14 trials for 10, then 20, then 40 steps at width 64, one training each"
        in shown.output
    )
    assert "space: at most 10^" in shown.output
    as_json = json.loads(
        CliRunner().invoke(app, ["plan", str(path), "--no-probe", "--json"]).stdout
    )
    assert as_json["probe"] is None
    assert as_json["space"]["draws"]["num_genomes"] == 200
    path.write_text(json.dumps(settings(budgets=[{"metric": "ttft", "limit": 1}])))
    wrong = CliRunner().invoke(app, ["plan", str(path), "--no-probe"])
    assert wrong.exit_code == 2
