"""When a budget is decided: looks at growing numbers of processes, with boundaries for stopping.

After each look the estimate of (value over limit, as a logarithm) either lies beyond the look's
boundary, and the budget is decided, or more is measured. After the last look the estimate decides.
The boundaries spend an error: for a stack exactly at the limit, the probability to have been
stopped at or before a look, on either side, is the share of the error that the look's share of all
processes allows (Lan and DeMets 1983; spending in proportion to the share, Kim and DeMets 1987).
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from scipy import special

from archloop.profiling.statistics import t_quantile
from archloop.ranking.estimate import Estimate
from archloop.ranking.variance import Pool

Decision = Literal["broken", "kept", "unsure"]

SPENT = 0.2
"""On each side. Exactly at a limit either decision is right, so that this may be large: doubling it
from a tenth changes no error rate 2% from the limit and saves a tenth of the processes."""
SURE = 0.975
"""Probability of a right decision that is meant by saying what a gate resolves."""
_GRID = 400
_WIDEST = 6.0


def decide(excess: Sequence[Estimate], look: int, num_looks: int) -> Decision:
    """What a look says of all budgets together.

    Args:
        excess: log(value / limit) of each figure that a budget limits.
        look: 1 for the first; each look adds as many processes as the first.
        num_looks: after which the estimate decides.
    """
    boundary = boundaries(num_looks)[look - 1] if look < num_looks else 0.0
    worst: Decision = "kept"
    for estimate in excess:
        if estimate.se == 0 or boundary == 0:
            distance = 0.0
        else:
            chance = float(special.ndtr(boundary))
            distance = t_quantile(chance, estimate.df) * estimate.se
        if estimate.mean > distance:
            return "broken"
        if estimate.mean > -distance:
            worst = "unsure"
    return worst


def size(noise: Sequence[Pool], num_looks: int, resolve: float, most: int) -> int:
    """Processes of a look, by the noise that is known before it.

    As few as leave an estimate after the last look that tells a stack so far from its limit on the
    right side in 97.5 of 100 cases; at least two, or a stack shows no noise of its own.

    Args:
        noise: of the logarithm of each figure that a budget limits.
        num_looks: after which the estimate decides.
        resolve: distance from the limit, as a share of it.
        most: that a look may have.
    """
    needed = 2.0
    for pool in noise:
        known = pool.of_stack()
        errors = t_quantile(SURE, known.df) / math.log1p(resolve)
        needed = max(needed, errors**2 * known.value / num_looks)
    return min(most, math.ceil(needed))


@cache
def boundaries(num_looks: int, spent: float = SPENT) -> tuple[float, ...]:
    """Normal quantiles beyond which each look but the last decides.

    The sums over looks are a random walk; its density inside the boundaries is carried from look to
    look on a grid.

    Args:
        num_looks: equally spaced, at least one.
        spent: on each side, by the last look.
    """
    found: list[float] = []
    inside, density = np.zeros(1), np.ones(1)
    step = 1 / math.sqrt(num_looks)
    for look in range(1, num_looks):
        allowed = spent / num_looks
        low, high = 0.0, _WIDEST
        while high - low > 1e-9:
            middle = (low + high) / 2
            beyond = special.ndtr(-(middle * math.sqrt(look / num_looks) - inside) / step)
            if float((density * beyond).sum()) > allowed:
                low = middle
            else:
                high = middle
        found.append(high)
        edge = high * math.sqrt(look / num_looks)
        points = np.linspace(-edge, edge, _GRID + 1)
        centre, width = (points[1:] + points[:-1]) / 2, points[1] - points[0]
        moved = np.exp(-0.5 * ((centre[:, None] - inside) / step) ** 2) / (
            step * math.sqrt(2 * math.pi)
        )
        inside, density = centre, (moved * density).sum(1) * width
    return tuple(found)
