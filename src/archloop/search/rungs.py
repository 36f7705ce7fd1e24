"""Rungs: which trials are trained longer.

Asynchronous successive halving (arXiv 1810.05934) with the expected hypervolume contribution in
place of a single score: a trial goes on if its own is in the top share of all that reached its
rung before it. A pure function of what was told, so a resumed study decides alike.
"""

import math
from collections.abc import Sequence

import numpy as np

from archloop.search import front
from archloop.search.objectives import as_point, noise
from archloop.search.record import Objectives

MAX_COMPARED = 64
"""Trials compared by expected contribution; of more, those of the best non-domination ranks."""
NUM_SAMPLES = 64


def promoted(
    trial: Objectives,
    others: Sequence[Objectives],
    worst: Objectives,
    share: float,
    seed: Sequence[int],
) -> bool:
    """Whether a trial goes to the next rung.

    Args:
        trial: its objectives at this rung.
        others: of the trials with lower numbers at this rung.
        worst: the reference point.
        share: of the trials at a rung that go on; at least one does.
        seed: of the noise that is drawn.
    """
    everyone = [trial, *others]
    places = max(1, math.floor(share * len(everyone)))
    points = np.array([as_point(objectives) for objectives in everyone])
    # The trial's own index is 0, so that it wins ties within its rank.
    nearest = np.argsort(front.ranks(points), kind="stable")[:MAX_COMPARED]
    if 0 not in nearest:
        return False
    gains = front.expected_contributions(
        points[nearest],
        np.array([noise(everyone[i]) for i in nearest]),
        as_point(worst),
        seed=int(np.random.SeedSequence(list(seed)).generate_state(1)[0]),
        num_samples=NUM_SAMPLES,
    )
    own = gains[list(nearest).index(0)]
    return bool(own > 0 and (gains > own).sum() < places)
