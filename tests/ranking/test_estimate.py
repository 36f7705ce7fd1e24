"""Estimates and pooled variances against scipy, closed forms and simulated studies."""

import math

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

import fronts
from archloop.ranking import estimate, variance
from archloop.ranking.estimate import Estimate
from archloop.ranking.estimates import estimate as estimated
from archloop.ranking.estimates import merged, pools, repeated
from archloop.ranking.record import Readings
from archloop.ranking.variance import Variance


def test_the_interval_is_students() -> None:
    values = [1.0, 1.2, 0.9, 1.4]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert estimate.of_values(values).interval() == pytest.approx((low, high))


def test_an_exact_or_exactly_known_error_needs_no_degrees_of_freedom() -> None:
    assert Estimate(mean=1.0).interval() == (1.0, 1.0)
    assert Estimate(mean=0.0, se=1.0).half_width() == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValidationError):
        Estimate(mean=1.0, se=-1.0)


def test_the_degrees_of_freedom_of_a_difference_are_welchs() -> None:
    first, second = [1.0, 1.3, 0.8, 1.1], [2.0, 2.9, 1.0]
    welch = stats.ttest_ind(first, second, equal_var=False)
    found = estimate.total([estimate.of_values(first), estimate.of_values(second)], [1, -1])
    assert found.df == pytest.approx(welch.df)
    assert found.mean / found.se == pytest.approx(welch.statistic)


def test_equal_noise_is_pooled_with_all_degrees_of_freedom() -> None:
    pool = variance.pooled([Variance(1.0, 2), Variance(1.0, 2), Variance(1.0, 4)])
    assert (pool.value, pool.total_df) == (1.0, 8)
    assert pool.of_stack() == Variance(1.0, 8, shared=True)
    assert pool.of_stack(Variance(5.0, 3)).value == 1.0


def test_unequal_noise_is_shrunk_part_of_the_way() -> None:
    """The estimators find the distribution that the variances were drawn from."""
    rng = np.random.default_rng(0)
    true = 2.0 * 6 / rng.chisquare(6, 4000)
    own = [Variance(v, 5.0) for v in true * rng.chisquare(5, 4000) / 5]
    pool = variance.pooled(own)
    assert pool.df == pytest.approx(6, rel=0.15)
    assert pool.value == pytest.approx(2.0, rel=0.05)
    shrunk = pool.of_stack(Variance(10.0, 5))
    assert shrunk.df == pytest.approx(pool.df + 5)
    assert shrunk.value == pytest.approx((pool.df * pool.value + 50) / (pool.df + 5))


def test_readings_that_are_all_equal_have_no_noise() -> None:
    pool = variance.pooled([variance.of_values([1.0, 1.0])] * 4)
    assert pool.of_stack(Variance(0.0, 1)).value == 0.0
    with pytest.raises(ValueError, match="measured twice"):
        variance.pooled([Variance(1.0, 0)])


def test_a_measurement_that_two_records_have_counts_once() -> None:
    """Such as the study's of the reference preset, taken over by a trial that meets the preset."""
    memory = Readings(mean=0.9, sd=0.01, n=5)
    measured = {"latency": Readings(mean=1.0, sd=0.08, n=5), "memory": memory}
    taken_over = {**measured, "quality": Readings(mean=0.5)}
    other = {"latency": Readings(mean=1.1, sd=0.08, n=5), "memory": memory}
    assert pools([measured, taken_over])["latency"].total_df == 4
    # Another stack may have as much memory by chance.
    found = pools([measured, taken_over, other])
    assert (found["latency"].total_df, found["memory"].total_df) == (8, 8)
    # Readings that do not vary are equal in many stacks, each measured for itself.
    exact = {"memory": Readings(mean=1.0, sd=0.0, n=5)}
    assert pools([exact, exact])["memory"].total_df == 8


def test_few_degrees_of_freedom_of_a_prior_are_never_more_than_were_measured() -> None:
    pool = variance.pooled([Variance(v, 1) for v in (0.5, 1.0, 2.0)])
    assert pool.of_stack().df <= pool.total_df == 3
    assert math.isfinite(pool.of_stack(Variance(1.0, 1)).df)


def test_bars_of_quality_hold_the_truth() -> None:
    assert 0.93 <= fronts.quality_coverage(studies=4000, seed=1) <= 0.97


@pytest.mark.parametrize("unequal", [False, True])
def test_bars_of_device_figures_hold_the_truth(unequal: bool) -> None:
    share = fronts.device_coverage(10, processes=4, unequal=unequal, studies=400, seed=2)
    assert 0.93 <= share <= 0.97


def test_runs_of_a_stack_show_noise_of_what_each_read_once() -> None:
    values = [0.40, 0.47, 0.44]
    runs = [
        {"quality": Readings(mean=value), "latency": Readings(mean=1 + value, sd=0.1, n=3)}
        for value in values
    ]
    pair = repeated(runs[0], runs[1:2])
    assert set(pair) == {"quality"}
    assert (pair["quality"].n, pair["quality"].sd) == (2, pytest.approx(np.std(values[:2], ddof=1)))
    # With what the others show among themselves it is all that the three show.
    squares = repeated(runs[0], runs[1:])["quality"].sd ** 2 + np.var(values[1:], ddof=1)
    assert squares == pytest.approx(2 * np.var(values, ddof=1))
    # A figure that holds by definition was not read, and a run alone shows nothing.
    exact = {"quality": Readings(mean=1.0, n=0)}
    assert repeated(runs[0], [exact]) == repeated(exact, runs) == repeated(runs[0], []) == {}


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_noise_with_repeats_of_the_best_hides_none(spread: float, unequal: bool) -> None:
    """20 stacks trained once, the best three again; spread is in the noise of a training."""
    rng = np.random.default_rng(4)
    found, held, held_by_anchors = [], 0, 0
    for _ in range(800):
        sd = np.sqrt(4 / rng.chisquare(4, 23)) if unequal else np.ones(23)
        anchors = sd[20:, None] * rng.standard_normal((3, 2))
        known = [{"quality": merged([Readings(mean=x) for x in row])} for row in anchors]
        true = spread * rng.standard_normal(20)
        first, again = true + sd[:20] * rng.standard_normal((2, 20))
        best = np.argsort(first)[-3:]
        runs = [[{"quality": Readings(mean=x)} for x in row[best]] for row in (first, again)]
        repeats = [repeated(one, [other]) for one, other in zip(*runs, strict=True)]
        found.extend([each["quality"].sd ** 2 for each in repeats] / sd[best] ** 2)
        for index, other in zip(best, runs[1], strict=True):
            low, high = estimated(other["quality"], pools(known + repeats)["quality"]).interval()
            held += low <= true[index] <= high
            low, high = estimated(other["quality"], pools(known)["quality"]).interval()
            held_by_anchors += low <= true[index] <= high
    assert np.mean(found) > 1.0
    # Of intervals of 95%; the anchor stacks alone know too little where noise is unequal.
    assert held / len(found) > 0.95
    assert held > held_by_anchors
