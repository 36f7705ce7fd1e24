"""Budgets: what they limit, and what looks at the device say of them."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from archloop.profiling.record import Profile
from archloop.ranking import budgets
from archloop.ranking.budgets import Budget, Judgement
from archloop.ranking.estimates import pools
from archloop.search import gate
from ranking.profiles import interval, profile


def judged(profiles: dict[str, Profile], limits: list[Budget], look: int = 2) -> Judgement:
    """With the noise of these profiles alone."""
    figures = budgets.limited(profiles, limits)
    known = pools([{figure.name: figure.logs} for figure in figures])
    return budgets.judged(figures, known, look, 2)


@pytest.mark.parametrize(
    ("limit", "first", "last", "is_straddled"),
    [
        (9.0, "broken", "broken", False),
        (9.9, "unsure", "broken", True),
        (10.1, "unsure", "kept", True),
        (11.0, "kept", "kept", False),
    ],
)
def test_the_last_look_decides_by_the_estimate(
    limit: float, first: str, last: str, is_straddled: bool
) -> None:
    limits = [Budget(metric="decode_p50_ms", limit=limit, context=4096)]
    assert judged({"here": profile()}, limits, 1).decision == first
    found = judged({"here": profile()}, limits, 2)
    assert found.decision == last
    assert bool(found.broken) == (last == "broken")
    assert bool(found.straddles) == is_straddled


def test_readings_of_a_logarithm_are_those_behind_the_interval() -> None:
    logs = budgets.log_readings(interval(10.0), 5)
    assert logs.mean == pytest.approx(math.log(10))
    assert logs.sd == pytest.approx(0.05 / 2.776 * math.sqrt(5), rel=0.01)


def test_noise_that_other_trials_showed_decides_sooner() -> None:
    """A stack of two readings is unsure by itself and surely broken where noise is known."""
    limits = [Budget(metric="decode_p50_ms", limit=9.93, context=4096)]
    looks = []

    def measure(look: int) -> dict[str, Profile]:
        looks.append(look)
        return {"here": profile(num_processes=2)}

    alone = gate.judge(measure, limits, [], 2)
    assert (len(looks), bool(alone.broken)) == (2, True)
    quiet = budgets.limited({"here": profile(num_processes=2)}, limits)[0]
    sd = quiet.logs.sd
    assert sd is not None
    earlier = [{quiet.name: quiet.logs.model_copy(update={"sd": sd / 3})} for _ in range(10)]
    looks.clear()
    assert gate.judge(measure, limits, earlier, 2).broken
    assert looks == [1]


def test_a_broken_budget_names_where_and_by_how_much() -> None:
    profiles = {"laptop": profile(), "phone": profile()}
    phone = Budget(metric="ttft_ms", limit=200, context=4096, target="phone")
    (found,) = judged(profiles, [phone]).broken
    assert (found.metric, found.context, found.target) == ("ttft_ms", 4096, "phone")
    assert (found.value, found.low) == pytest.approx((409.6, 389.12), rel=0.01)
    assert budgets.excess([found]) == pytest.approx(409.6 / 200 - 1)
    everywhere = judged(profiles, [Budget(metric="ttft_ms", limit=1)]).broken
    assert {(b.target, b.context) for b in everywhere} == {
        (d, c) for d in profiles for c in (1024, 4096)
    }
    assert budgets.excess([]) == 0.0


def test_relative_budgets_read_the_ratios() -> None:
    budget = Budget(metric="peak_memory_bytes", limit=1.1, relative=True)
    found = judged({"here": profile()}, [budget]).broken
    assert [(b.context, b.relative) for b in found] == [(1024, True), (4096, True)]
    assert [b.value for b in found] == pytest.approx([1.2, 1.2])
    with pytest.raises(ValueError, match="no ratios to a reference"):
        budgets.limited({"here": profile(ratios={})}, [budget])


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
        budgets.check_budgets(
            [Budget(metric="ttft_ms", limit=1, **budget)], {"here": [1024]}, False
        )
    budgets.check_budgets([Budget(metric="ttft_ms", limit=1)], {"here": [1024]}, reference=False)


@pytest.mark.parametrize("bad", [{"metric": "latency"}, {"limit": 0}, {"lmit": 3}])
def test_a_budget_of_the_wrong_shape_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget(**({"metric": "ttft_ms", "limit": 1} | bad))
