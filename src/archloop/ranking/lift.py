"""Values at the highest rung, for stacks that were trained there and for stacks that were not.

Stacks trained at two rungs measure what the longer training changes: a mean difference and how much
stacks differ in it. A stack of the lower rung alone is lifted by the mean difference, and its
standard error grows by what is not known of its own difference. So stacks of all rungs stand in one
table, and those that were trained longer are known better.
"""

import math
from collections.abc import Sequence

from archloop.ranking import estimate
from archloop.ranking.estimate import Estimate

MIN_PAIRS = 3
"""Stacks that must have been trained at both rungs before their difference is used."""


def lifted(rungs: Sequence[Sequence[Estimate]]) -> tuple[int, list[Estimate]]:
    """All stacks at one rung, the highest that can be compared.

    Args:
        rungs: by stack, its values from rung 0 up, at least one each.

    Returns:
        The rung, and each stack's value there: measured, or lifted from below.
    """
    top = 0
    values = [stack[0] for stack in rungs]
    while True:
        both = [stack for stack in rungs if len(stack) > top + 1]
        if len(both) < MIN_PAIRS:
            return top, values
        gain = estimate.of_values([stack[top + 1].mean - stack[top].mean for stack in both])
        if gain.mean == gain.se == 0:
            # A figure that a longer training leaves as it is, such as latency.
            top += 1
            continue
        longer_variance = math.fsum(stack[top + 1].se ** 2 for stack in both) / len(both)
        values = [
            stack[top + 1] if len(stack) > top + 1 else _raised(value, gain, longer_variance)
            for stack, value in zip(rungs, values, strict=True)
        ]
        top += 1


def _raised(value: Estimate, gain: Estimate, longer_variance: float) -> Estimate:
    """A value with the mean difference added.

    The differences between two noisy values vary by both values' noise and by what stacks truly
    differ in; the longer training's noise is no part of the truth that is predicted.
    """
    between = max(gain.n * gain.se**2 - longer_variance, value.se**2)
    df = gain.df if value.df is None else min(gain.df or math.inf, value.df)
    return Estimate(
        mean=value.mean + gain.mean,
        se=math.sqrt(between + gain.se**2),
        df=df,
        n=value.n,
    )
