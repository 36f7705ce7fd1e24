"""A study over several targets: two engines on one host, and one that is left out where allowed.

Measurements in processes of their own are run by make test-ci.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archloop import registry
from archloop.ranking import objectives
from archloop.ranking.budgets import Budget, limited
from archloop.search import plan
from archloop.search.evaluator import Unsupported
from archloop.search.hardware import HardwareEvaluator
from archloop.search.recipe.errors import RecipeError
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from search.stand_in import recipe

PLUGINS = Path(__file__).parents[1] / "profiling" / "plugins"
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
    registry.add_folder(PLUGINS)
    yield
    registry._folders.pop(PLUGINS.resolve())


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
    evaluator = HardwareEvaluator(recipe(targets=targets, profile=QUICK), tmp_path / "artifacts")
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
