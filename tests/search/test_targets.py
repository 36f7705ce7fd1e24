"""A study over several targets: two engines on one host, and one that is left out where allowed.

Measurements in processes of their own are run by make test-ci.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archloop import registry
from archloop.findings.rerank import reranked
from archloop.profiling.record import Interval
from archloop.ranking import objectives
from archloop.ranking.budgets import Budget, limited
from archloop.search import gate, plan
from archloop.search.evaluator import Unsupported
from archloop.search.hardware import HardwareEvaluator
from archloop.search.recipe.errors import RecipeError
from archloop.search.recipe.recipe import Recipe
from archloop.search.study import Study
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.store.stages import Profiled
from search.stand_in import StandIn, no_time, recipe

PLUGINS = Path(__file__).parents[1] / "profiling" / "plugins"
WITH_PLAIN = Path(__file__).parents[1] / "workers" / "plugins"
"""A folder with the runtime `plain`, whose engine is a program without archloop."""
QUICK: dict[str, Any] = {
    "processes": 2,
    "warmup_steps": 1,
    "timed_steps": 4,
    "prefill_repeats": 1,
    "ready_timeout_s": 0,
}


def stack(d_model: int = 64, vocab_size: int = 256) -> StackSpec:
    block = BlockSpec(
        mixers=(MixerSpec(name="short_conv"),), channel_mixer=ChannelMixerSpec(name="swiglu")
    )
    return StackSpec(d_model=d_model, vocab_size=vocab_size, blocks=(block,))


@pytest.fixture
def plugins() -> Iterator[None]:
    for folder in (PLUGINS, WITH_PLAIN):
        registry.add_folder(folder)
    yield
    for folder in (PLUGINS, WITH_PLAIN):
        registry._folders.pop(folder.resolve())


class RealDevices(StandIn):
    """Stacks are measured on the recipe's targets; trainings are formulas."""

    def __init__(self, given: Recipe, artifacts: Path) -> None:
        super().__init__()
        self.hardware = HardwareEvaluator(given, artifacts)

    def profile(
        self,
        spec: StackSpec,
        reference: StackSpec,
        look: int,
        directory: Path,
        processes: int | None = None,
    ) -> Profiled:
        self._called(f"profile {spec.digest}", directory)
        return self.hardware.profile(spec, reference, look, directory, processes)

    def close(self) -> None:
        self.hardware.close()


@pytest.mark.ci
@pytest.mark.usefixtures("plugins")
def test_a_study_with_two_engines_on_one_host(tmp_path: Path) -> None:
    """PyTorch and a program of its own, which runs convolutions alone and may be left out."""
    ours = stack(vocab_size=64).blocks[0]
    given = recipe(
        num_trials=2,
        targets={
            "torch": {"contexts": [16], "threads": 1},
            "plain": {"runtime": "plain", "contexts": [16], "threads": 1, "optional": True},
        },
        profile=QUICK,
        budgets=[{"metric": "peak_memory_bytes", "limit": 2**35, "target": "plain"}],
        reference={"layout": ["short_conv", "short_conv"]},
        anchors={"default": {"lacks": "short_conv", "has": "gqa"}},
        specs=[StackSpec(d_model=64, vocab_size=64, blocks=(ours, ours)).model_dump(mode="json")],
        initial=[["short_conv", "gqa"]],
        space={
            "ship": {"d_model": 64, "vocab_size": 64},
            "proxy": {"d_model": 64},
            "num_blocks": 2,
            "mixers": {"short_conv": {"kernel": [5, 3]}, "gqa": {"head_dim": 32}},
            "channel_mixers": {"swiglu": {"expansion": 1.0}},
        },
    )
    record = Study(given, tmp_path, evaluator=RealDevices(given, tmp_path / "artifacts")).run()
    assert record.reference is not None
    assert [trial.state for trial in record.trials] == ["complete"] * 2
    both, mixed = record.trials
    assert (both.spec.layout, mixed.spec.layout) == (["short_conv"] * 2, ["short_conv", "gqa"])
    for measured in (record.reference, both):
        torch, plain = measured.profiles["torch"].identity, measured.profiles["plain"].identity
        assert (torch.runtime, plain.runtime) == ("torch_eager", "plain")
        assert torch.device == plain.device
    ratios = [profile.latency_ratio for profile in both.profiles.values()]
    assert both.objectives is not None
    assert both.objectives.mean("latency") == max(ratio.value for ratio in ratios if ratio)
    assert list(both.readings)[-1] == "peak_memory_bytes at 16 on plain"
    assert list(mixed.profiles) == ["torch"]
    assert list(mixed.left_out) == ["plain"]
    # Every profile of either target is found again.
    again = RealDevices(given, tmp_path / "artifacts")
    assert Study(given, tmp_path, evaluator=again).run().trials == record.trials
    assert again.calls == []


@pytest.mark.ci
def test_two_engines_on_one_host_stand_side_by_side(tmp_path: Path) -> None:
    targets = {
        "exact": {"contexts": [32], "threads": 1},
        "rounded": {"quant": "bf16", "contexts": [16, 32], "threads": 1},
    }
    evaluator = HardwareEvaluator(recipe(targets=targets, profile=QUICK), tmp_path / "artifacts")
    found = evaluator.profile(stack(), stack(d_model=512), 1, tmp_path / "samples")
    assert list(found.profiles) == ["exact", "rounded"]
    assert not found.left_out
    exact, rounded = found.profiles.values()
    assert (exact.identity.quant, exact.identity.contexts) == ("fp32", (32,))
    assert (rounded.identity.quant, rounded.identity.contexts) == ("bf16", (16, 32))
    assert exact.identity.device == rounded.identity.device
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["exact", "rounded"]
    assert exact.latency_ratio is not None
    assert rounded.latency_ratio is not None
    worst = objectives.device(found.profiles)["latency"].mean
    assert worst == max(exact.latency_ratio.value, rounded.latency_ratio.value)
    budget = Budget(metric="peak_memory_bytes", limit=1, target="rounded", context=16)
    (limit,) = limited(found.profiles, [budget])
    assert (limit.target, limit.context) == ("rounded", 16)
    # Whole samples of either target are not taken again.
    again = evaluator.profile(stack(), stack(d_model=512), 1, tmp_path / "samples")
    assert again == found


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("optional", [pytest.param(True, marks=pytest.mark.ci), False])
def test_a_target_that_cannot_run_a_spec(optional: bool, tmp_path: Path) -> None:
    targets = {
        "here": {"contexts": [16], "threads": 1},
        "odd": {
            "runtime": "faulty",
            "quant": "fine",
            "contexts": [16],
            "threads": 1,
            "optional": optional,
        },
    }
    evaluator = HardwareEvaluator(
        recipe(targets=targets, profile=QUICK, budgets=[]), tmp_path / "artifacts"
    )
    odd = stack(vocab_size=255)
    if not optional:
        with pytest.raises(Unsupported, match=r"^odd: faulty: an odd vocabulary$"):
            evaluator.profile(odd, stack(), 1, tmp_path / "samples")
        return
    found = evaluator.profile(odd, stack(), 1, tmp_path / "samples")
    assert list(found.profiles) == ["here"]
    assert found.left_out == {"odd": "faulty: an odd vocabulary"}


@pytest.mark.usefixtures("plugins")
def test_a_target_that_cannot_run_the_reference_is_refused_before_anything_runs() -> None:
    targets = {"here": {}, "odd": {"runtime": "faulty", "quant": "fine", "optional": True}}
    space = {**recipe().space.model_dump(mode="json"), "ship": {"d_model": 128, "vocab_size": 511}}
    with pytest.raises(RecipeError, match=r"targets\.odd: faulty cannot run the reference preset"):
        plan.resolve(recipe(targets=targets, space=space))


class UntilBroken(StandIn):
    """Two equal targets, of which the second is measured where the first broke no budget."""

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, directory: Path
    ) -> Profiled:
        first = super().profile(spec, reference, look, directory).profiles
        ends = spec != reference and gate.breaks(first, recipe().budgets, look, 1)
        return Profiled(profiles=first if ends else {**first, "there": first["here"]})


@pytest.mark.parametrize("strategy", ["nsga2", "model"])
def test_what_was_measured_on_some_targets_tells_of_these_alone(
    strategy: str, tmp_path: Path
) -> None:
    targets = {name: {"contexts": [64, 128]} for name in ("here", "there")}
    settings = {"population": 4} if strategy == "nsga2" else {"start": 4}
    asked = recipe(targets=targets, looks=1, strategy={"name": strategy, "settings": settings})
    record = Study(asked, tmp_path, evaluator=UntilBroken(), clock=no_time).run()
    rejected = [trial for trial in record.trials if trial.state == "rejected"]
    assert rejected
    for trial in rejected:
        assert set(trial.profiles) == {"here"}
        assert {budget.target for budget in trial.broken} == {"here"}
        # Of the worst of both targets nothing is known.
        assert set(trial.readings) == {
            f"decode_p50_ms/reference at {context} on here" for context in (64, 128)
        }
    for trial in record.trials:
        if trial.state == "complete":
            assert set(trial.profiles) == {"here", "there"}
            assert {"latency", "memory"} <= set(trial.readings)
    same = reranked(record)
    assert {t.number: t.readings for t in same.record.trials} == {
        t.number: t.readings for t in record.trials
    }
    there = reranked(record, targets=["there"]).record
    for trial in rejected:
        anew = there.trials[trial.number]
        assert anew.state == "failed"
        assert anew.error is not None
        assert anew.error.startswith("not measured there, as it broke decode_p50_ms at ")
    # Whether they keep other budgets on a target that did not measure them is not known.
    loose = Budget(metric="decode_p50_ms", limit=100.0, relative=True)
    (line,) = reranked(record, budgets=[loose]).unknown
    assert line.startswith("measured on some of these targets alone")
    kept, _ = reranked(record, budgets=[loose.model_copy(update={"target": "here"})]).unknown
    assert kept.startswith("within these budgets but never trained")


class Throttled(StandIn):
    """Measures every stack as twice as slow, up to the first target, whose budget that breaks."""

    def profile(
        self, spec: StackSpec, reference: StackSpec, look: int, directory: Path
    ) -> Profiled:
        profile = super().profile(spec, reference, look, directory).profiles["here"]
        ratios = {
            context: {
                name: Interval(value=2 * each.value, low=2 * each.low, high=2 * each.high)
                for name, each in by_name.items()
            }
            for context, by_name in profile.ratios.items()
        }
        return Profiled(profiles={"here": profile.model_copy(update={"ratios": ratios})})


def test_a_trained_stack_whose_lost_measurement_ends_early_once_more_is_not_ranked(
    tmp_path: Path,
) -> None:
    """It would be ranked by the targets that there are, as if it were as fast on the others."""
    targets = {name: {"contexts": [64, 128]} for name in ("here", "there")}
    asked = recipe(targets=targets, looks=1)
    study = Study(asked, tmp_path, evaluator=UntilBroken(), clock=no_time)
    assert study.run().trials[0].state == "complete"
    (study.folder / "trials/000000/profile.json").unlink()
    again = Study(asked, tmp_path, evaluator=Throttled(), clock=no_time).run(redo=True)
    trial = again.trials[0]
    assert (trial.state, trial.by_rung) == ("rejected", ())
    assert set(trial.profiles) == {"here"}
    assert {budget.target for budget in trial.broken} == {"here"}
    assert "latency" not in trial.readings


@pytest.mark.usefixtures("plugins")
def test_what_a_required_target_cannot_run_is_measured_on_none_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(HardwareEvaluator, "_profile", lambda _, name, *__: measured.append(name))
    odd = {"runtime": "faulty", "quant": "fine", "contexts": [16]}
    asked = recipe(targets={"here": {"contexts": [16]}, "odd": odd}, budgets=[])
    evaluator = HardwareEvaluator(asked, tmp_path / "artifacts")
    with pytest.raises(Unsupported, match=r"^odd: faulty: an odd vocabulary$"):
        evaluator.profile(stack(vocab_size=255), stack(), 1, tmp_path / "samples")
    assert measured == []
