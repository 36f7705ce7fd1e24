"""Objectives, budgets, admission and the reference point from hand-made records."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from archloop.evals.base import Score
from archloop.profiling.record import Figures, Identity, Interval, Profile
from archloop.ranking import objectives
from archloop.ranking.objectives import Budget

IDENTITY = Identity(
    device="here", runtime="torch", runtime_version="1", quant="none", precision="fp32",
    threads=1, contexts=(1024, 4096),
)  # fmt: skip


def interval(value: float, spread: float = 0.05) -> Interval:
    return Interval(value=value, low=value * (1 - spread), high=value * (1 + spread))


def figures(context: int, **changes: Interval) -> Figures:
    values = {
        "ttft_ms": interval(context / 10),
        "prefill_tok_per_s": interval(1e4),
        "decode_p50_ms": interval(10.0),
        "decode_p95_ms": interval(12.0),
        "peak_memory_bytes": interval(1100.0),
        "baseline_memory_bytes": interval(100.0),
    }
    return Figures(context=context, **(values | changes))


def profile(latency: float = 1.0, memory: float = 1.0, **changes: Any) -> Profile:
    ratios = {
        c: {m: interval(1.2) for m in ("ttft_ms", "decode_p50_ms", "peak_memory_bytes")}
        for c in ("1024", "4096")
    }
    values: dict[str, Any] = {
        "identity": IDENTITY, "figures": (figures(1024), figures(4096)), "ratios": ratios,
        "latency": interval(latency), "memory": interval(memory, 0.01),
        "num_processes": 5, "seconds": 1.0,
    }  # fmt: skip
    return Profile(**(values | changes))


def score(normalized: float, category: str = "text", se: float = 0.01, **changes: Any) -> Score:
    values: dict[str, Any] = {
        "value": normalized, "standard_error": se, "chance": 0.0, "perfect": 1.0,
        "num_examples": 100, "category": category,
    }  # fmt: skip
    return Score(**(values | changes))


# --- quality ------------------------------------------------------------------------------------


def test_categories_weigh_alike_whatever_their_number_of_tasks() -> None:
    scores = {
        "a": score(0.2, se=0.02),
        "b": score(0.4, "recall", se=0.03),
        "c": score(0.8, "recall", se=0.04),
        "left out": score(1.0, "other"),
    }
    value, se = objectives.quality(scores, ["a", "b", "c"])
    assert value == pytest.approx((0.2 + (0.4 + 0.8) / 2) / 2)
    assert se == pytest.approx(math.sqrt((0.02 / 2) ** 2 + (0.03 / 4) ** 2 + (0.04 / 4) ** 2))


def test_scores_of_which_less_is_better_count_like_the_others() -> None:
    bits = score(0, value=2.0, standard_error=0.06, chance=8.0, perfect=0.0)
    value, se = objectives.quality({"bits": bits}, ["bits"])
    assert value == pytest.approx(0.75)
    assert se == pytest.approx(0.06 / 8)


def test_a_task_is_admitted_at_three_standard_errors_above_chance() -> None:
    scores = {
        "clear": score(0.0301),
        "faint": score(0.0299),
        "below": score(-0.5),
        "silent": score(0.0, se=0.0),
        "sure": score(0.1, se=0.0),
    }
    kept, dropped = objectives.admitted(scores)
    assert kept == ("clear", "sure")
    assert set(dropped) == {"faint", "below", "silent"}
    assert "3.0 standard errors above chance (0); 3 are needed" in dropped["faint"]


def test_no_admitted_task_or_a_missing_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no task carries signal"):
        objectives.quality({}, [])
    with pytest.raises(ValueError, match="no score for b"):
        objectives.quality({"a": score(0.5)}, ["a", "b"])


# --- objectives ---------------------------------------------------------------------------------


def test_latency_and_memory_are_the_worst_over_targets() -> None:
    profiles = {"laptop": profile(0.7, 1.3), "phone": profile(0.9, 0.6)}
    found = objectives.objectives(profiles, {"a": score(0.5)}, ["a"], seed_se=0.03)
    assert (found.quality, found.latency, found.memory) == pytest.approx((0.5, 0.9, 1.3))
    assert found.quality_se == pytest.approx(math.hypot(0.01, 0.03))
    assert found.latency_se == pytest.approx(0.9 * 0.05 / 1.96, rel=0.01)
    assert found.memory_se == pytest.approx(1.3 * 0.01 / 1.96, rel=0.01)
    assert objectives.as_point(found) == (-found.quality, found.latency, found.memory)
    assert objectives.noise(found) == (found.quality_se, found.latency_se, found.memory_se)


def test_the_standard_error_is_that_of_the_normal_with_the_interval() -> None:
    se = 0.04
    wide = Interval(value=2.0, low=2 * math.exp(-1.959964 * se), high=2 * math.exp(1.959964 * se))
    assert objectives.standard_error(wide) == pytest.approx(2 * se)
    assert objectives.standard_error(Interval(value=1, low=1, high=1)) == 0.0
    assert objectives.standard_error(Interval(value=1, low=-1, high=3)) == pytest.approx(
        4 / 3.92, rel=0.01
    )


def test_objectives_need_ratios() -> None:
    with pytest.raises(ValueError, match="the profile on here has no latency ratio"):
        objectives.objectives(
            {"here": profile().model_copy(update={"latency": None})}, {"a": score(1)}, ["a"]
        )


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "is_broken", "is_straddled"),
    [(9.4, True, False), (9.5, False, True), (10.0, False, True), (10.5, False, False)],
)
def test_a_budget_breaks_when_the_whole_interval_is_above_it(
    limit: float, is_broken: bool, is_straddled: bool
) -> None:
    budgets = [Budget(metric="decode_p50_ms", limit=limit, context=4096)]
    profiles = {"here": profile()}
    assert bool(objectives.broken(profiles, budgets)) == is_broken
    assert bool(objectives.straddles(profiles, budgets)) == is_straddled


def test_a_broken_budget_names_where_and_by_how_much() -> None:
    profiles = {"laptop": profile(), "phone": profile()}
    (found,) = objectives.broken(
        profiles, [Budget(metric="ttft_ms", limit=200, context=4096, target="phone")]
    )
    assert (found.metric, found.context, found.target) == ("ttft_ms", 4096, "phone")
    assert (found.value, found.low) == pytest.approx((409.6, 389.12))
    assert objectives.excess([found]) == pytest.approx(409.6 / 200 - 1)
    everywhere = objectives.broken(profiles, [Budget(metric="ttft_ms", limit=1)])
    assert {(b.target, b.context) for b in everywhere} == {
        (d, c) for d in profiles for c in (1024, 4096)
    }
    assert objectives.excess([]) == 0.0


def test_relative_budgets_read_the_ratios() -> None:
    budget = Budget(metric="peak_memory_bytes", limit=1.1, relative=True)
    found = objectives.broken({"here": profile()}, [budget])
    assert [(b.context, b.value, b.relative) for b in found] == [
        (1024, 1.2, True), (4096, 1.2, True),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no ratios to a reference"):
        objectives.broken({"here": profile(ratios={})}, [budget])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"target": "phone"}, r"budgets\[0\].target='phone': give one of \['here'\]"),
        ({"context": 512}, r"budgets\[0\].context=512: give one that is profiled: \[1024\]"),
        ({"relative": True}, r"budgets\[0\].relative: name a reference preset"),
    ],
)
def test_budgets_on_what_is_not_measured_are_refused(budget: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objectives.check_budgets(
            [Budget(metric="ttft_ms", limit=1, **budget)], {"here": [1024]}, False
        )
    objectives.check_budgets([Budget(metric="ttft_ms", limit=1)], {"here": [1024]}, reference=False)


@pytest.mark.parametrize("bad", [{"metric": "latency"}, {"limit": 0}, {"lmit": 3}])
def test_a_budget_of_the_wrong_shape_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget(**({"metric": "ttft_ms", "limit": 1} | bad))


# --- reference point ----------------------------------------------------------------------------


def test_without_budgets_it_is_chance_and_one_and_a_half_times_the_reference() -> None:
    point = objectives.reference_point({"here": profile()})
    assert (point.quality, point.latency, point.memory) == (0.0, 1.5, 1.5)


def test_budgets_on_every_context_replace_the_default() -> None:
    # Peak 1100 over a baseline of 100: a peak of 1.3 x 1100 = 1430 is a ratio of 1330 / 1000.
    memory = [Budget(metric="peak_memory_bytes", limit=1.3, relative=True)]
    assert objectives.reference_point({"here": profile()}, memory).memory == pytest.approx(1.33)
    absolute = [Budget(metric="peak_memory_bytes", limit=1430)]
    assert objectives.reference_point({"here": profile()}, absolute).memory == pytest.approx(1.33)


@pytest.mark.parametrize("num_steps", [256, 16])
def test_latency_is_bounded_only_by_first_token_and_decode_together(num_steps: int) -> None:
    ttft = Budget(metric="ttft_ms", limit=2, relative=True)
    p95 = Budget(metric="decode_p95_ms", limit=15)
    identity = IDENTITY.model_copy(update={"decode_tokens": num_steps})
    reference = {"here": profile(identity=identity)}
    assert objectives.reference_point(reference, [ttft]).latency == 1.5
    bounds = [
        (2 * t + num_steps * 15) / (t + num_steps * 10) for t in (102.4, 409.6)
    ]  # fmt: skip
    found = objectives.reference_point(reference, [ttft, p95]).latency
    assert found == pytest.approx(math.sqrt(bounds[0] * bounds[1]))
    here_only = [ttft, p95.model_copy(update={"context": 1024})]
    assert objectives.reference_point(reference, here_only).latency == 1.5


def test_the_bound_is_the_largest_over_targets_if_all_have_one() -> None:
    reference = {"a": profile(), "b": profile()}
    tight = Budget(metric="peak_memory_bytes", limit=1210, target="a")
    loose = Budget(metric="peak_memory_bytes", limit=1430, target="b")
    assert objectives.reference_point(reference, [tight]).memory == 1.5
    assert objectives.reference_point(reference, [tight, loose]).memory == pytest.approx(1.33)
