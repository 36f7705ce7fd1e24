"""The t-interval against scipy, and what intervals must be under."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from archloop.profiling.statistics import (
    geometric_mean,
    interval,
    percentile,
    ratio_interval,
)


def test_interval_is_scipys_on_logarithms() -> None:
    values = [3.0, 3.3, 2.9, 3.6, 3.1]
    logs = np.log(values)
    low, high = stats.t.interval(0.95, 4, loc=logs.mean(), scale=stats.sem(logs))
    found = interval(values)
    assert found.value == pytest.approx(stats.gmean(values), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        values = [math.exp(draw.gauss(1.0, 0.1)) for _ in range(5)]
        found = interval(values)
        covered += found.low <= math.e <= found.high
    # Binomial standard error at 2,000 draws: 0.5%.
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_ratios_are_paired() -> None:
    """What moves both processes of a pair leaves the ratio alone."""
    drift = [1.0, 2.0, 5.0]
    found = ratio_interval([3 * d for d in drift], [2 * d for d in drift])
    assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert interval([3 * d for d in drift]).high > 10


def test_equal_values_have_no_width() -> None:
    found = interval([7.0, 7.0])
    assert found.low == found.value == found.high == pytest.approx(7.0)


def test_percentile_is_numpys() -> None:
    values = [5.0, 1.0, 4.0, 2.5, 9.0, 3.0]
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert percentile(values, share) == pytest.approx(np.quantile(values, share))
    assert percentile([2.0], 0.95) == 2.0
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
