"""Which stacks are trained longer: successive halving whose score is the hypervolume of a set.

Asynchronous (arXiv 1810.05934): whenever something has finished, the best share of all that
finished a rung is found anew, and who is among them and waits there may go on, so that nobody loses
a place by having come early. The best are chosen one after another, each the stack that adds most
volume to those chosen before it: of two twins the first has the place, where exclusive
contributions would deny it to both. Values are shrunk towards their mean, so that noise earns no
place.
"""

from collections.abc import Collection, Sequence

import numpy as np

from archloop.ranking import front
from archloop.ranking.posterior import Draws
from archloop.ranking.table import Table

MIN_FINISHED = 3
"""Stacks that must have finished a rung before any goes on."""
NUM_DRAWS = 200


def promotable(
    table: Table, gone: Collection[int], worst_M: Sequence[float], share: float, *, seed: int
) -> list[int]:
    """Who may go to the next rung now, best first.

    Args:
        table: all stacks that finished the rung.
        gone: indices of those that went on already.
        worst_M: the reference point, less is better.
        share: of the finished stacks that go on; at least one does.
        seed: of the draws behind the shrunk values.
    """
    count = len(table.mean_NM)
    if count < MIN_FINISHED:
        return []
    # A product such as 0.29 * 100 comes out a little below the whole number that it is.
    places = max(1, int(share * count + 1e-9))
    values_NM = Draws(table, seed, NUM_DRAWS).means_NM
    return [i for i in greedy(values_NM, worst_M, places) if i not in gone]


def greedy(points_NM: front.Floats, worst_M: Sequence[float], count: int) -> list[int]:
    """Up to `count` points, each adding most hypervolume to those before; none that adds
    nothing."""
    chosen: list[int] = []
    left = [int(i) for i in np.flatnonzero(front.nondominated(points_NM))]
    volume = 0.0
    while left and len(chosen) < count:
        gains = [front.hypervolume(points_NM[[*chosen, i]], worst_M) - volume for i in left]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        volume += gains[best]
        chosen.append(left.pop(best))
    return chosen
