"""Looks, rungs, promotions and seeds: decisions taken from estimates."""

import math

import numpy as np
import pytest

import fronts
from archloop.ranking import halving, lift, looks, reliability
from archloop.ranking.estimate import Estimate
from archloop.ranking.table import Table
from archloop.ranking.variance import Pool


def over(ratio: float, se: float = 0.0, df: float | None = 30) -> Estimate:
    return Estimate(mean=math.log(ratio), se=se, df=df)


# --- the gate -----------------------------------------------------------------------------------


def test_the_last_look_decides_by_the_estimate() -> None:
    assert looks.decide([over(1.001, se=0.2)], 2, 2) == "broken"
    assert looks.decide([over(0.999, se=0.2)], 2, 2) == "kept"
    assert looks.decide([over(1.001, se=0.2)], 1, 1) == "broken"


def test_an_early_look_decides_only_what_is_clear() -> None:
    assert looks.decide([over(1.05, se=0.1)], 1, 2) == "unsure"
    assert looks.decide([over(1.05, se=0.01)], 1, 2) == "broken"
    assert looks.decide([over(0.95, se=0.01)], 1, 2) == "kept"
    # One budget that is broken for sure needs no more looks at the others.
    assert looks.decide([over(1.001, se=0.1), over(1.3, se=0.01)], 1, 2) == "broken"
    assert looks.decide([over(0.5, se=0.01), over(0.99, se=0.1)], 1, 2) == "unsure"
    assert looks.decide([], 1, 2) == "kept"
    assert looks.decide([over(1.2), over(0.8)], 1, 2) == "broken"


@pytest.mark.parametrize("num_looks", [2, 3, 4])
def test_the_boundaries_spend_what_they_say(num_looks: int) -> None:
    """At the limit, the share of random walks that have crossed one side by each look."""
    rng = np.random.default_rng(num_looks)
    steps = rng.standard_normal((200_000, num_looks - 1))
    sums = steps.cumsum(1) / np.sqrt(np.arange(1, num_looks))
    bounds = np.array(looks.boundaries(num_looks, 0.2))
    crossed = np.abs(sums) > bounds
    first = crossed.argmax(1)
    for look in range(num_looks - 1):
        upper = crossed.any(1) & (first == look) & (sums[np.arange(len(sums)), first] > 0)
        assert upper.mean() == pytest.approx(0.2 / num_looks, abs=0.003)


def test_the_gates_error_rates() -> None:
    """Both kinds of error, by simulation: half at the limit, few 5% from it, none 10% from it."""
    for sd, slack in ((0.01, 0.002), (0.03, 0.01), (0.1, 0.12)):
        assert fronts.gate(0.95, sd, 2, 1500, seed=1)[0] <= slack
        assert fronts.gate(1.05, sd, 2, 1500, seed=1)[0] >= 1 - slack
        assert fronts.gate(1.0, sd, 2, 1500, seed=1)[0] == pytest.approx(0.5, abs=0.05)
        assert fronts.gate(1.1, sd, 2, 1500, seed=1)[0] >= 0.985
    # A second look only where it can change the decision.
    assert fronts.gate(0.9, 0.03, 2, 500, seed=1)[1] < 4.1
    assert fronts.gate(1.0, 0.03, 2, 500, seed=1)[1] > 6.5


# --- rungs --------------------------------------------------------------------------------------


def test_values_below_the_highest_rung_are_lifted_by_the_measured_difference() -> None:
    def at(mean: float) -> Estimate:
        return Estimate(mean=mean, se=0.01, df=8, shared=True)

    rungs = [[at(0.5), at(0.61)], [at(0.4), at(0.5)], [at(0.3), at(0.39)], [at(0.6)]]
    top, values = lift.lifted(rungs)
    assert top == 1
    assert [value.mean for value in values] == pytest.approx([0.61, 0.5, 0.39, 0.7])
    assert values[3].se > values[0].se == 0.01
    assert values[3].df == 2
    # Two pairs measure no difference.
    assert lift.lifted(rungs[1:]) == (0, [stack[0] for stack in rungs[1:]])


def test_lifted_values_have_bars_that_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(800):
        truth = rng.normal(0.5, 0.1, 9)
        longer = truth + 0.1 + rng.normal(0, 0.02, 9)
        low = truth + rng.normal(0, 0.03, 9)
        high = longer + rng.normal(0, 0.03, 9)
        rungs = [
            [Estimate(mean=a, se=0.03), *([Estimate(mean=b, se=0.03)] if i < 6 else [])]
            for i, (a, b) in enumerate(zip(low, high, strict=True))
        ]
        for value, true in zip(lift.lifted(rungs)[1][6:], longer[6:], strict=True):
            held.append(value.interval()[0] <= true <= value.interval()[1])
    assert 0.93 <= np.mean(held) <= 0.99


def exact(points: list[list[float]]) -> Table:
    array = np.array(points)
    zero = np.zeros(array.shape)
    return Table(array, zero, zero + math.inf, zero > 0)


def test_nobody_is_promoted_before_three_have_finished() -> None:
    points = [[-0.5, 1.0], [-0.6, 1.1], [-0.4, 0.9]]
    assert halving.promotable(exact(points[:2]), (), (0, 2), 0.5, seed=0) == []
    assert len(halving.promotable(exact(points), (), (0, 2), 0.5, seed=0)) == 1


def test_a_share_that_is_a_whole_number_of_places_has_them_all() -> None:
    points = [[-0.01 * n, 1 + 0.01 * n] for n in range(1, 101)]
    assert 0.29 * len(points) < 29
    assert len(halving.promotable(exact(points), (), (0, 3), 0.29, seed=0)) == 29


def test_whoever_waits_is_reconsidered_when_places_open() -> None:
    """The second best goes on once there are places for two, late as that may be."""
    points = [[-0.6, 1.0], [-0.5, 0.9], [-0.1, 1.5], [-0.1, 1.6]]
    first = halving.promotable(exact(points[:3]), (), (0, 2), 0.5, seed=0)
    assert first == [0]
    assert halving.promotable(exact(points), first, (0, 2), 0.5, seed=0) == [1]


def test_twins_do_not_take_each_others_place() -> None:
    """What either twin alone adds is next to nothing, yet one of them is worth most."""
    twins = np.array([[-0.6, 1.0], [-0.5999, 0.9999], [-0.2, 0.9], [-0.1, 1.5]])
    assert halving.greedy(twins, (0, 2), 2)[0] in (0, 1)
    assert halving.greedy(twins, (0, 2), 2)[1] == 2
    # None that adds nothing, however many places there are.
    assert len(halving.greedy(twins, (0, 2), 4)) == 3


# --- seeds --------------------------------------------------------------------------------------


def test_seeds_that_a_ranking_needs() -> None:
    assert reliability.seeds_needed(0.63) == 3
    assert reliability.seeds_needed(0.84, 3) == 3
    assert reliability.seeds_needed(0.5) == 4
    assert reliability.seeds_needed(0.5, 2) == 8
    assert reliability.seeds_needed(1.0) == 1
    assert reliability.seeds_needed(0.0) is None


def test_a_look_is_as_large_as_the_known_noise_asks() -> None:
    quiet, busy = (Pool(sd**2, math.inf, 30) for sd in (0.01, 0.05))
    assert looks.size([quiet], 2, 0.02, most=8) == 2
    # 2.042 * 0.05 / sqrt(2 n) <= log(1.05) from n = 2.19 on.
    assert looks.size([quiet, busy], 2, 0.05, most=8) == 3
    assert looks.size([busy], 2, 0.02, most=8) == 8
    assert looks.size([], 2, 0.02, most=8) == 2
    # The same noise, known from 3 degrees of freedom: Student's t asks for more.
    assert looks.size([Pool(0.05**2, math.inf, 3)], 2, 0.05, most=20) > 3


@pytest.mark.parametrize("ratio, rejected", [(1 / 1.05, 0.0), (1.05, 1.0)])
def test_a_gate_of_that_size_resolves_what_it_was_sized_for(ratio: float, rejected: float) -> None:
    """At 5% from the limit at most 2.5% are judged wrongly, at noise of 8% a process."""
    sd, rng = 0.08, np.random.default_rng(0)
    count = looks.size([Pool(sd**2, math.inf, 60)], 2, 0.05, most=99)
    wrong = 0
    for _ in range(400):
        readings = math.log(ratio) + sd * rng.standard_normal(2 * count)
        # Without the early look, whose boundaries spend a little more.
        over = Estimate(mean=float(readings.mean()), se=sd / math.sqrt(2 * count), df=60)
        wrong += (looks.decide([over], 2, 2) == "broken") != bool(rejected)
    assert wrong / 400 <= 0.04
