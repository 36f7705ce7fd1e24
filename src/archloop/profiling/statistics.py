"""Estimates over processes: geometric means with 95% t-intervals, on logarithms.

The process is the sampling unit: steps within one process are not independent (they share page
placement, clock and neighbours), so each process gives one number. Times and sizes are positive and
vary by factors, hence logarithms; a ratio to the reference is then a plain mean of differences.
"""

import math
from collections.abc import Sequence
from functools import cache

from archloop.profiling.record import Interval

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> Interval:
    """Geometric mean of one positive value per process, with its t-interval.

    Args:
        values: at least two.
    """
    assert len(values) >= 2, "one process has no interval"
    logs = [math.log(value) for value in values]
    mean = math.fsum(logs) / len(logs)
    variance = math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1)
    half = t_quantile(0.5 + CONFIDENCE / 2, len(logs) - 1) * math.sqrt(variance / len(logs))
    return Interval(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def ratio_interval(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """Ratio of paired values: each process against the reference's process measured beside it."""
    return interval([a / b for a, b in zip(values, reference, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated linearly."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for whole degrees of freedom and a probability of at least 1/2.

    Bisection on the finite series of the distribution function (Abramowitz and Stegun, 26.7.3 and
    26.7.4), which spares a dependency on scipy.
    """
    assert 0.5 <= probability < 1
    low, high = 0.0, 1.0
    while _t_distribution(high, degrees) < probability:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        if _t_distribution(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def _t_distribution(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0."""
    angle = math.atan2(t, math.sqrt(degrees))
    cos_squared = degrees / (degrees + t * t)
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cos_squared * k / (k + 1)
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return 0.5 + inside / 2
