"""Estimates over processes: geometric means with 95% t-intervals, on logarithms.

The process is the sampling unit: steps within one process are not independent (they share page
placement, clock and neighbours), so each process gives one number. Times and sizes are positive and
vary by factors, hence logarithms; a ratio to the reference is then a plain mean of differences.
"""

import math
from collections.abc import Sequence

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


def t_quantile(probability: float, df: float | None) -> float:
    """Quantile of Student's t; of the normal distribution if the degrees of freedom are None."""
    # Imported here: worker processes read this module too, and their memory is what is measured.
    from scipy import special

    if df is None or math.isinf(df):
        return float(special.ndtri(probability))
    return float(special.stdtrit(df, probability))
