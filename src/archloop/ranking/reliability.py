"""Can a study rank at all? Reliability of its estimates, and what more of them would take.

The reliability of a figure is the correlation to expect between a study and its repetition: for
equal noise the share of the variance of its estimates that is variance of the true values (an
intraclass correlation). `posterior.Draws` has it; here is what follows from it.
"""

import math

NEEDED = 0.8
"""Reliability below which a study ranks nothing by the figure."""


def seeds_needed(reliability: float, num_seeds: int = 1, wanted: float = NEEDED) -> int | None:
    """Trainings a stack that would reach a reliability (Spearman 1910, Brown 1910).

    Args:
        reliability: of means of `num_seeds` trainings.
        num_seeds: trainings a stack now.
        wanted: reliability to reach.

    Returns:
        Trainings a stack in all; None if stacks do not differ, so that no number would do.
    """
    if reliability <= 0:
        return None
    if reliability >= 1:
        return num_seeds
    ratio = wanted * (1 - reliability) / (reliability * (1 - wanted))
    return max(num_seeds, math.ceil(num_seeds * ratio - 1e-9))
