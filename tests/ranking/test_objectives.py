"""Objectives and the reference point from hand-made records."""

import math

import numpy as np
import pytest

from archloop.evals.base import Score
from archloop.profiling.record import Interval, Profile
from archloop.profiling.statistics import t_quantile
from archloop.ranking import anchors, objectives
from archloop.ranking.budgets import Budget
from archloop.ranking.record import Objective, Objectives
from ranking.profiles import IDENTITY, profile

QUALITY = {"quality": objectives.readings([0.5])}


def means(found: Objectives) -> tuple[float, ...]:
    return tuple(readings.mean for readings in found.values.values())


# --- objectives ---------------------------------------------------------------------------------


def test_latency_and_memory_are_the_worst_over_targets() -> None:
    profiles = {"laptop": profile(0.7, 1.3), "phone": profile(0.9, 0.6)}
    found = objectives.objectives(profiles, QUALITY)
    assert list(found.values) == ["quality", "latency", "memory"]
    assert means(found) == pytest.approx((0.5, 0.9, 1.3))
    assert objectives.as_point(found) == pytest.approx((-0.5, 0.9, 1.3))
    slow_only = [Objective(name="latency", direction="minimize")]
    assert objectives.as_point(found, slow_only) == pytest.approx((0.9,))


def test_readings_say_how_far_processes_lie_apart() -> None:
    """A 95% t-interval over 5 processes is 2.776 standard errors wide on each side."""
    latency = objectives.device({"here": profile(0.9)})["latency"]
    assert latency.n == 5
    assert latency.sd == pytest.approx(0.9 * 0.05 / 2.776 * math.sqrt(5), rel=0.01)
    # One training shows no noise of its own, and that over examples is common to all trials.
    quality = objectives.objectives({"here": profile()}, QUALITY).values["quality"]
    assert (quality.n, quality.sd) == (1, None)


def test_a_stack_that_is_equal_on_many_targets_is_seldom_called_slower() -> None:
    """The largest of ten readings is too large: its own interval would miss in 22% of studies."""
    rng = np.random.default_rng(0)
    se, half = 0.01, t_quantile(0.975, 4) * 0.01
    wanted = [Objective(name="latency", direction="minimize")]
    missed = {1: 0, 10: 0}
    for count in missed:
        for logs in rng.normal(0.0, se, (400, count)):
            ends = (logs, logs - half, logs + half)
            profiles = {
                str(i): profile(latency_ratio=Interval(value=value, low=low, high=high))
                for i, (value, low, high) in enumerate(zip(*map(np.exp, ends), strict=True))
            }
            found = objectives.device(profiles, wanted)["latency"]
            assert found.mean == pytest.approx(math.exp(logs.max()))
            assert found.sd is not None
            # The pool of a study makes the noise as good as known.
            missed[count] += found.mean - 1.96 * found.sd / math.sqrt(found.n) > 1
    assert missed[1] < 22
    assert missed[10] < 25


def test_the_noise_of_a_target_that_may_be_the_worst_counts() -> None:
    """What was read best is the worst by a hair, and nobody knows of the other."""
    quiet, loud = (Interval(value=v, low=v / s, high=v * s) for v, s in ((1.0, 1.01), (0.99, 1.5)))
    wanted = [Objective(name="latency", direction="minimize")]
    alone = objectives.device({"a": profile(latency_ratio=quiet)}, wanted)["latency"]
    both = {"a": profile(latency_ratio=quiet), "b": profile(latency_ratio=loud)}
    found = objectives.device(both, wanted)["latency"]
    assert found.mean == alone.mean == 1.0
    assert found.sd is not None
    assert alone.sd is not None
    assert found.sd > 20 * alone.sd


def test_the_reference_is_one_by_definition_and_known_as_well_as_its_seeds() -> None:
    found = objectives.of_reference({"quality": objectives.readings([0.5, 0.6, 0.7])})
    assert means(found) == pytest.approx((0.6, 1.0, 1.0))
    assert found.values["latency"].n == found.values["memory"].n == 0
    assert found.values["quality"].sd == pytest.approx(0.1)


def test_objectives_need_ratios() -> None:
    without = profile().model_copy(update={"latency_ratio": None})
    with pytest.raises(ValueError, match="the profile on here has no latency ratio"):
        objectives.objectives({"here": without}, QUALITY)


# --- objectives of one's own --------------------------------------------------------------------

FIRST_TOKEN = Objective(name="first token", direction="minimize", figure="ttft_ms")
PREFILL = Objective(
    name="prefill", direction="maximize", figure="prefill_tok_per_s", contexts="worst"
)
RECALL = Objective(name="recall", direction="maximize", figure="quality:recall")


def with_ratios(**by_context: dict[str, float]) -> Profile:
    return profile().model_copy(
        update={
            "ratios": {
                context: {
                    name: Interval(value=value, low=0.9 * value, high=value / 0.9)
                    for name, value in ratios.items()
                }
                for context, ratios in by_context.items()
            }
        }
    )


def test_any_metric_of_a_device_can_be_an_objective() -> None:
    profiles = {
        "laptop": with_ratios(a={"ttft_ms": 1.0}, b={"ttft_ms": 4.0}),
        "phone": with_ratios(a={"ttft_ms": 1.0}, b={"ttft_ms": 1.0}),
    }
    wanted = (*objectives.OBJECTIVES, FIRST_TOKEN)
    found = objectives.objectives(profiles, QUALITY, wanted)
    # The geometric mean over contexts, the worst over targets.
    assert found.mean("first token") == pytest.approx(2.0)
    assert objectives.as_point(found, wanted)[-1] == pytest.approx(2.0)
    reference = objectives.of_reference(QUALITY, wanted)
    assert reference.mean("first token") == 1
    assert objectives.reference_point(profiles, (), wanted).mean("first token") == 1.5


def test_the_worst_of_what_is_maximised_is_the_least() -> None:
    ratios = {"a": {"prefill_tok_per_s": 0.8}, "b": {"prefill_tok_per_s": 1.2}}
    profiles = {"laptop": with_ratios(**ratios), "phone": with_ratios(a={"prefill_tok_per_s": 0.9})}
    found = objectives.device(profiles, [PREFILL])
    assert found["prefill"].mean == pytest.approx(0.8)
    worst = objectives.reference_point(profiles, (), [PREFILL])
    assert worst.mean("prefill") == pytest.approx(1 / 1.5)


def test_a_metric_that_was_not_measured_is_said() -> None:
    with pytest.raises(ValueError, match="no prefill_tok_per_s ratio"):
        objectives.device({"here": with_ratios(a={"ttft_ms": 1.0})}, [PREFILL])


def test_a_category_of_scores_can_stand_for_itself() -> None:
    def score(value: float, category: str) -> Score:
        return Score(
            value=value,
            standard_error=0.01,
            chance=0.0,
            perfect=1.0,
            num_examples=10,
            category=category,
        )

    def scores(recall: float, text: float) -> dict[str, Score]:
        return {"copy": score(recall, "recall"), "words": score(text, "text")}

    stacks = {"low": [scores(0.2, 0.1)] * 2, "high": [scores(0.6, 0.9)] * 2}
    scale, _ = anchors.measure(stacks, {}, ("low", "high"))
    assert scale is not None
    wanted = (*objectives.OBJECTIVES, RECALL)
    found = objectives.of_scores(scale, [scores(0.6, 0.1), scores(0.2, 0.1)], wanted)
    assert list(found) == ["quality", "recall"]
    # Half of quality is recall, in which these trainings differ alone.
    low, high = (objectives.of_scores(scale, [scores(r, 0.1)], wanted) for r in (0.2, 0.6))
    gains = {name: high[name].mean - low[name].mean for name in found}
    assert gains["recall"] == pytest.approx(2 * gains["quality"])
    assert found["recall"].sd == pytest.approx(gains["recall"] / math.sqrt(2))
    unknown = Objective(name="wit", direction="maximize", figure="quality:wit")
    with pytest.raises(ValueError, match="no score of category 'wit' counts"):
        objectives.of_scores(scale, [scores(0.6, 0.1)], [unknown])


# --- reference point ----------------------------------------------------------------------------


def test_without_budgets_it_is_no_skill_and_one_and_a_half_times_the_reference() -> None:
    assert means(objectives.reference_point({"here": profile()})) == (0.0, 1.5, 1.5)


def test_budgets_on_every_context_replace_the_default() -> None:
    # Peak 1100 over an empty engine's 100: a peak of 1.3 x 1100 = 1430 is a ratio of 1330 / 1000.
    memory = [Budget(metric="peak_memory_bytes", limit=1.3, relative=True)]
    assert objectives.reference_point({"here": profile()}, memory).mean("memory") == pytest.approx(
        1.33
    )
    absolute = [Budget(metric="peak_memory_bytes", limit=1430)]
    assert objectives.reference_point({"here": profile()}, absolute).mean(
        "memory"
    ) == pytest.approx(1.33)


@pytest.mark.parametrize("num_steps", [256, 16])
def test_latency_is_bounded_only_by_first_token_and_decode_together(num_steps: int) -> None:
    ttft = Budget(metric="ttft_ms", limit=2, relative=True)
    p95 = Budget(metric="decode_p95_ms", limit=15)
    identity = IDENTITY.model_copy(update={"decode_tokens": num_steps})
    reference = {"here": profile(identity=identity)}
    assert objectives.reference_point(reference, [ttft]).mean("latency") == 1.5
    bounds = [
        (2 * t + num_steps * 15) / (t + num_steps * 10) for t in (102.4, 409.6)
    ]  # fmt: skip
    found = objectives.reference_point(reference, [ttft, p95]).mean("latency")
    assert found == pytest.approx(math.sqrt(bounds[0] * bounds[1]))
    here_only = [ttft, p95.model_copy(update={"context": 1024})]
    assert objectives.reference_point(reference, here_only).mean("latency") == 1.5


def test_the_bound_is_the_largest_over_targets_if_all_have_one() -> None:
    reference = {"a": profile(), "b": profile()}
    tight = Budget(metric="peak_memory_bytes", limit=1210, target="a")
    loose = Budget(metric="peak_memory_bytes", limit=1430, target="b")
    assert objectives.reference_point(reference, [tight]).mean("memory") == 1.5
    assert objectives.reference_point(reference, [tight, loose]).mean("memory") == pytest.approx(
        1.33
    )
